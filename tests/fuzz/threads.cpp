// Every op of the CPU in many threads at once, over inputs that they share, for ThreadSanitizer: `threads SEED SECONDS`.
// What a thread computes, with one or several threads of its own, has to equal what was computed alone.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "cpu/isa.h"

namespace {

using namespace pygen;
using Bytes = std::vector<char>;
using Random = std::mt19937_64;

constexpr int kThreads = 4;

template <typename T>
void append(Bytes& bytes, const std::vector<T>& values) {
  const char* data = reinterpret_cast<const char*>(values.data());
  bytes.insert(bytes.end(), data, data + values.size() * sizeof(T));
}

template <typename T>
T one_of(Random& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

template <typename T>
std::vector<T> filled(int64_t size, const std::function<T()>& next) {
  std::vector<T> values(static_cast<size_t>(size));
  for (T& value : values) value = next();
  return values;
}

// What the calls of a round read.
struct Inputs {
  explicit Inputs(Random& random)
      : rows(static_cast<int64_t>(1 + random() % 3) * 2),
        vocab_size(one_of<int64_t>(random, {1, 2, 63, 64, 65, 700, 5000, 40000})) {
    const auto score = [&] {
      const float special[] = {-std::numeric_limits<float>::infinity(), 0.0f, 3.0f};
      return random() % 8 == 0 ? special[random() % 3] : std::normal_distribution<float>(0, 3)(random);
    };
    const auto id = [&] { return static_cast<int64_t>(random() % static_cast<uint64_t>(vocab_size + 2)) - 1; };
    logits = filled<float>(rows * kPositions * vocab_size, score);
    bias = filled<float>(vocab_size, score);
    for (float& value : bias) value = std::isfinite(value) ? value : 0.0f;
    noise = filled<float>(rows * vocab_size, [&] { return std::exponential_distribution<float>(1)(random) + 1e-9f; });
    uniforms = filled<float>(rows * kPositions, [&] { return static_cast<float>(random() >> 41) * 0x1p-24f; });
    ids = filled<int64_t>(rows * kHistory, id);
    seeds = filled<int64_t>(rows, [&] { return static_cast<int64_t>(random()); });
    token_bitmask = filled<int32_t>((vocab_size + 31) / 32, [&] { return static_cast<int32_t>(random() | random()); });
    top_p = filled<float>(rows, [&] { return static_cast<float>(random() % 101) / 100; });
    generator.resize(5056);
    const int32_t left = 1, seeded = 1;
    std::memcpy(&generator[8], &left, 4);
    std::memcpy(&generator[12], &seeded, 4);
    for (size_t i = 0; i < 624; ++i) {
      const uint64_t word = random() & 0xFFFFFFFFu;
      std::memcpy(&generator[24 + 8 * i], &word, 8);
    }

    shaping.rows = rows;
    shaping.vocab_size = vocab_size;
    shaping.logits = logits.data();
    shaping.logits_stride = vocab_size;
    shaping.temperature.value = one_of(random, {0.0f, 0.3f, 1.0f, 2.5f});
    if (random() % 2 == 0) shaping.top_p.per_row = top_p.data();
    shaping.top_k.value = one_of<int64_t>(random, {0, 0, 1, 5, 50, 100000});
    shaping.min_p.value = one_of(random, {0.0f, 0.0f, 0.1f});
    shaping.typical_p.value = one_of(random, {1.0f, 1.0f, 0.8f});
    shaping.top_h.value = one_of(random, {0.0f, 0.0f, 0.5f});
    shaping.min_tokens_to_keep.value = one_of<int64_t>(random, {1, 1, 3});
    if (random() % 2 == 0) {
      shaping.repetition_penalty.value = 1.3f;
      shaping.frequency_penalty.value = 0.2f;
      shaping.no_repeat_ngram_size.value = 2;
    }
    shaping.input_ids = ids.data();
    shaping.input_ids_stride = shaping.history_length = kHistory;
    if (random() % 2 == 0) shaping.bias = bias.data();
    if (random() % 2 == 0) shaping.token_bitmask = token_bitmask.data();
    if (random() % 2 == 0) {
      shaping.suppress = ids.data();
      shaping.suppress_count = 3;
    }
    rng = one_of(random, {Rng::kPhilox, Rng::kTorch, Rng::kGiven});
  }

  static constexpr int64_t kHistory = 12, kPositions = 3, kTop = 4;
  int64_t rows, vocab_size;
  std::vector<float> logits, bias, noise, uniforms, top_p;
  std::vector<int64_t> ids, seeds;
  std::vector<int32_t> token_bitmask;
  Bytes generator;
  ShapingParams shaping;
  Rng rng;
};

ShapingParams with_threads(const Inputs& in, int threads) {
  ShapingParams shaping = in.shaping;
  shaping.threads = threads;
  return shaping;
}

template <typename Params>
void set_noise(Params& params, const Inputs& in, Bytes& generator) {
  generator = in.generator;
  params.rng = in.rng;
  params.seeds = in.seeds.data();
  params.noise = in.noise.data();
  params.noise_stride = in.vocab_size;
  params.generator_state = reinterpret_cast<uint8_t*>(generator.data());
}

Bytes sample(const Inputs& in, int threads) {
  std::vector<int64_t> token_ids(in.rows), top_ids(in.rows * in.kTop);
  std::vector<int32_t> status(in.rows);
  std::vector<float> logprobs(in.rows), top_logprobs(in.rows * in.kTop);
  Bytes bytes, generator;
  SampleParams params;
  params.shaping = with_threads(in, threads);
  set_noise(params, in, generator);
  params.num_logprobs = in.kTop;
  params.token_ids = token_ids.data();
  params.status = status.data();
  params.logprobs = logprobs.data();
  params.top_ids = top_ids.data();
  params.top_logprobs = top_logprobs.data();
  cpu::implementation().sample(params);
  append(bytes, token_ids);
  append(bytes, status);
  append(bytes, logprobs);
  append(bytes, top_ids);
  append(bytes, top_logprobs);
  append(bytes, generator);
  return bytes;
}

Bytes process_logits(const Inputs& in, int threads) {
  std::vector<float> out(in.rows * in.vocab_size);
  ProcessParams params{with_threads(in, threads), out.data(), in.vocab_size};
  cpu::implementation().process_logits(params);
  Bytes bytes;
  append(bytes, out);
  return bytes;
}

Bytes token_logprobs(const Inputs& in, int threads) {
  std::vector<float> logprobs(in.rows * in.kHistory), top_logprobs(in.rows * in.kTop);
  std::vector<int64_t> top_ids(in.rows * in.kTop);
  std::vector<int32_t> status(in.rows);
  LogprobParams params;
  params.rows = in.rows;
  params.vocab_size = in.vocab_size;
  params.threads = threads;
  params.logits = in.logits.data();
  params.logits_stride = in.vocab_size;
  params.token_ids = in.ids.data();
  params.token_ids_stride = params.num_tokens = in.kHistory;
  params.num_top = in.kTop;
  params.logprobs = logprobs.data();
  params.top_ids = top_ids.data();
  params.top_logprobs = top_logprobs.data();
  params.status = status.data();
  cpu::implementation().token_logprobs(params);
  Bytes bytes;
  append(bytes, logprobs);
  append(bytes, top_ids);
  append(bytes, top_logprobs);
  append(bytes, status);
  return bytes;
}

Bytes verify_draft(const Inputs& in, int threads) {
  std::vector<int64_t> accepted(in.rows), token_ids(in.rows);
  std::vector<int32_t> status(in.rows);
  DraftParams params;
  params.rows = in.rows;
  params.vocab_size = in.vocab_size;
  params.num_drafts = in.kPositions - 1;
  params.threads = threads;
  params.target = in.logits.data();
  params.target_row_stride = in.kPositions * in.vocab_size;
  params.target_position_stride = in.vocab_size;
  if (in.seeds[0] % 2 == 0) params.draft = in.logits.data() + in.vocab_size;
  params.draft_row_stride = in.kPositions * in.vocab_size;
  params.draft_position_stride = in.vocab_size;
  params.draft_ids = in.ids.data();
  params.draft_ids_stride = in.kHistory;
  params.lengths.value = params.num_drafts;
  params.temperature = in.shaping.temperature;
  params.rng = in.rng == Rng::kGiven ? Rng::kGiven : Rng::kPhilox;
  params.seeds = in.seeds.data();
  params.uniforms = in.uniforms.data();
  params.noise = in.noise.data();
  params.noise_stride = in.vocab_size;
  params.accepted = accepted.data();
  params.token_ids = token_ids.data();
  params.status = status.data();
  cpu::implementation().verify_draft(params);
  Bytes bytes;
  append(bytes, accepted);
  append(bytes, token_ids);
  append(bytes, status);
  return bytes;
}

Bytes reorder_cache(const Inputs& in, int threads) {
  constexpr int64_t kHeads = 3, kLength = 700, kWidth = 32;
  std::vector<float> cache(in.rows * kHeads * kLength * kWidth);
  for (size_t i = 0; i < cache.size(); ++i) cache[i] = static_cast<float>(i);
  std::vector<int64_t> sources(in.rows);
  for (int64_t row = 0; row < in.rows; ++row) sources[row] = std::abs(in.seeds[row] % in.rows);
  const CacheTensor tensor{
      reinterpret_cast<char*>(cache.data()), kHeads, kWidth, 4, kHeads * kLength * kWidth, kLength * kWidth, kWidth};
  ReorderParams params;
  params.rows = in.rows;
  params.length = kLength;
  params.start.value = std::abs(in.seeds[0] % kLength);
  params.beam_idx = sources.data();
  params.tensors = &tensor;
  params.num_tensors = 1;
  params.threads = threads;
  cpu::implementation().reorder_cache(params);
  Bytes bytes;
  append(bytes, cache);
  return bytes;
}

// A search of a few steps, and its result.
Bytes beams(const Inputs& in, int threads) {
  constexpr int64_t kBeams = 2, kSteps = 3, kCandidates = 2 * kBeams, kPrompt = 2;
  const int64_t rows = in.rows, prompts = rows / kBeams, capacity = kPrompt + kSteps;
  std::vector<int64_t> append_ids(rows * capacity), slots(rows), step_tokens(kSteps * rows, -1),
      finished_steps(rows, -1), finished_tokens(rows, -1), unfinished(1, prompts), candidate_ids(prompts * kCandidates),
      candidate_parents(prompts * kCandidates), count_of_row(rows), token_ids(rows), source_rows(rows),
      shared_out(rows);
  std::vector<int32_t> shared(rows * kBeams), step_parents(kSteps * rows, -1), finished_parents(rows, -1), status(rows);
  std::vector<float> running(rows), finished_scores(rows, kNeverWins), candidate_scores(prompts * kCandidates);
  const std::vector<float> normalisers{1, 2, 3, 1, 2, 3};
  std::vector<uint8_t> finished(rows), open(prompts, 1), ends(prompts * kCandidates);
  std::vector<Candidate> best_of_row(rows * kCandidates);
  for (int64_t row = 0; row < rows; ++row) {
    slots[row] = row;
    running[row] = row % kBeams == 0 ? 0.0f : kNeverWins;
  }
  Bytes bytes, generator;
  BeamParams params;
  params.shaping = with_threads(in, threads);
  if (params.shaping.temperature.value == 0) params.shaping.temperature.value = 1;
  params.shaping.input_ids = append_ids.data();
  params.shaping.input_ids_stride = capacity;
  params.do_sample = in.seeds[0] % 3 != 0;
  set_noise(params, in, generator);
  params.max_new_tokens = kSteps;
  params.num_beams = kBeams;
  params.num_candidates = kCandidates;
  params.normalisers = normalisers.data();
  params.append = append_ids.data();
  params.append_stride = capacity;
  params.prompt_length = kPrompt;
  params.slots = slots.data();
  params.shared = shared.data();
  params.running_scores = running.data();
  params.step_tokens = step_tokens.data();
  params.step_parents = step_parents.data();
  params.finished_scores = finished_scores.data();
  params.finished = finished.data();
  params.finished_steps = finished_steps.data();
  params.finished_tokens = finished_tokens.data();
  params.finished_parents = finished_parents.data();
  params.open = open.data();
  params.unfinished = unfinished.data();
  params.candidate_ids = candidate_ids.data();
  params.candidate_parents = candidate_parents.data();
  params.candidate_scores = candidate_scores.data();
  params.ends = ends.data();
  params.best_of_row = best_of_row.data();
  params.count_of_row = count_of_row.data();
  params.token_ids = token_ids.data();
  params.source_rows = source_rows.data();
  params.shared_out = shared_out.data();
  params.status = status.data();
  for (params.step = 0; params.step < kSteps; ++params.step) {
    params.shaping.history_length = kPrompt + params.step;
    cpu::implementation().beam_step(params);
    append(bytes, token_ids);
    append(bytes, source_rows);
    append(bytes, shared_out);
    append(bytes, status);
  }

  std::vector<int64_t> sequences(rows * capacity);
  std::vector<int32_t> beam_indices(rows * kSteps);
  FinalizeParams final;
  final.batch_size = prompts;
  final.num_beams = final.num_return_sequences = kBeams;
  final.prompt_length = kPrompt;
  final.width = kSteps;
  final.threads = threads;
  final.token_ids = append_ids.data();
  final.token_ids_stride = capacity;
  final.step_tokens = step_tokens.data();
  final.step_parents = step_parents.data();
  final.finished_steps = finished_steps.data();
  final.finished_tokens = finished_tokens.data();
  final.finished_parents = finished_parents.data();
  final.sequences = sequences.data();
  final.beam_indices = beam_indices.data();
  cpu::implementation().beam_finalize(final);
  append(bytes, sequences);
  append(bytes, beam_indices);
  append(bytes, finished_scores);
  return bytes;
}

struct Op {
  const char* name;
  Bytes (*call)(const Inputs&, int threads);
};
constexpr Op kOps[] = {{"sample", sample},
                       {"process_logits", process_logits},
                       {"token_logprobs", token_logprobs},
                       {"verify_draft", verify_draft},
                       {"reorder_cache", reorder_cache},
                       {"beams", beams}};

// The number of calls that gave something else.
int play(uint64_t seed) {
  Random random(seed);
  const Inputs in(random);
  std::vector<Bytes> expected;
  for (const Op& op : kOps) expected.push_back(op.call(in, 1));
  std::vector<int> wrong(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      Random own(seed + 1000 * static_cast<uint64_t>(t));
      for (int i = 0; i < 6; ++i) {
        const size_t op = own() % std::size(kOps);
        const int inner = 1 + static_cast<int>(own() % 3);
        if (kOps[op].call(in, inner) == expected[op]) continue;
        std::printf("%s with %d threads gave another result beside others\n", kOps[op].name, inner);
        ++wrong[t];
      }
    });
  for (std::thread& thread : threads) thread.join();
  int sum = 0;
  for (const int count : wrong) sum += count;
  return sum;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: threads SEED SECONDS\n"), 2;
  const uint64_t first = std::strtoull(argv[1], nullptr, 10);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(argv[2]));
  uint64_t seed = first;
  do {
    if (play(seed) > 0) return std::printf("seed %llu\n", static_cast<unsigned long long>(seed)), 1;
    ++seed;
  } while (std::chrono::steady_clock::now() < end);
  std::printf("%llu rounds\n", static_cast<unsigned long long>(seed - first));
  return 0;
}
