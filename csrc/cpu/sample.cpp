// sample: one pass over a row's logits gives block maxima; the filters turn them into an interval of scores; the exponential
// race draws among the survivors, and the row's bookkeeping follows. Exact: no row is sorted and no threshold is sampled.
// Bytes per row: one read of the logits from memory; later passes find the row, or its copy as float32, in the cache.
#include <cmath>

#include "common/sample_params.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/race.h"
#include "cpu/row_scores.h"
#include "cpu/survivors.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// Below it the reciprocal of a temperature may overflow where the quotient does not.
constexpr float kSmallestReciprocal = 1e-6f;

template <typename Noise, typename Get, typename Finish>
Winner race_in_parts(const RowScores& row, const Noise& noise, const Get& get, float scale, const Finish& finish,
                     float low, float high, int threads) {
  constexpr int kMaxParts = 64;
  const int parts = Noise::kSequential ? 1 : std::min(threads, kMaxParts);
  Winner winners[kMaxParts];
  parallel_parts(row.blocks(), parts, [&](int64_t begin, int64_t end, int part) {
    Noise own = noise;
    race_blocks(begin, end, own, get, scale, finish, low, high, winners[part]);
  });
  Winner best = winners[0];
  for (int part = 1; part < parts; ++part)
    if (winners[part].token_id >= 0) best.offer(winners[part].value, winners[part].token_id, winners[part].score);
  return best;
}

// Without a filter the row is raced where it lies.
template <typename Noise>
Winner race_unfiltered(const RowScores& row, float temperature, Noise noise, int threads) {
  const auto get = [&](int64_t b, float* room) { return row.block(b, room); };
  const auto finish = [temperature](float score) { return score / temperature; };
  return race_in_parts(row, noise, get, 1.0f / temperature, finish, -kInf, kInf, threads);
}

template <typename Noise>
Winner race_survivors(const RowScores& row, const Survivors& survivors, Noise noise, int threads) {
  Winner winner;
  if (survivors.token_ids() != nullptr) {
    race_list(survivors, noise, winner);
    return winner;
  }
  const auto get = [&](int64_t b, float*) { return static_cast<const float*>(survivors.scores()) + b * kBlock; };
  const auto finish = [](float score) { return score; };
  return race_in_parts(row, noise, get, 1.0f, finish, survivors.low(), survivors.high(), threads);
}

// Calls race(noise) with the noise of the row.
template <typename Race>
Winner with_noise(const SampleParams& params, int64_t row, MersenneTwister* twister, const Race& race) {
  switch (params.rng) {
    case Rng::kTorch: return race(TorchNoise(*twister));
    case Rng::kGiven: return race(GivenNoise{params.noise + row * params.noise_stride, params.shaping.vocab_size});
    default: break;
  }
  return race(PhiloxNoise(static_cast<uint64_t>(params.seeds[row]), static_cast<uint32_t>(knob_at(params.step, row))));
}

Winner largest_survivor(const Survivors& survivors) {
  Winner winner;
  const float* scores = survivors.scores();
  const int32_t* ids = survivors.token_ids();
  for (int64_t i = 0; i < survivors.size(); ++i)
    if (survivors.keeps(scores[i])) winner.offer(scores[i], ids != nullptr ? ids[i] : i, scores[i]);
  return winner;
}

void write_logprobs(const SampleParams& params, int64_t row, const Survivors& survivors, float score,
                    Scratch& scratch) {
  const double log_sum = survivors.log_sum_exp();
  params.logprobs[row] = static_cast<float>(score - log_sum);
  if (params.top_ids == nullptr) return;
  Buffer<ScoredToken>& best = scratch.ordered;
  best.clear();
  const float* scores = survivors.scores();
  const int32_t* ids = survivors.token_ids();
  for (int64_t i = 0; i < survivors.size(); ++i)
    if (survivors.keeps(scores[i])) best.push({scores[i], ids != nullptr ? ids[i] : static_cast<int32_t>(i)});
  const int64_t count = std::min(params.num_logprobs, best.size());
  std::partial_sort(best.data(), best.data() + count, best.data() + best.size(),
                    [](const ScoredToken& a, const ScoredToken& b) {
                      return a.score != b.score ? a.score > b.score : a.token_id < b.token_id;
                    });
  for (int64_t i = 0; i < params.num_logprobs; ++i) {
    const int64_t at = row * params.num_logprobs + i;
    params.top_ids[at] = i < count ? best[i].token_id : -1;
    params.top_logprobs[at] = i < count ? static_cast<float>(best[i].score - log_sum) : -kInf;
  }
}

void write_no_logprobs(const SampleParams& params, int64_t row) {
  params.logprobs[row] = kNaN;
  for (int64_t i = 0; params.top_ids != nullptr && i < params.num_logprobs; ++i) {
    params.top_ids[row * params.num_logprobs + i] = -1;
    params.top_logprobs[row * params.num_logprobs + i] = kNaN;
  }
}

// `twister` stands at the row's first word; null unless the noise is torch's.
void sample_row(const SampleParams& params, int64_t row, int threads, MersenneTwister* twister) {
  Scratch& scratch = thread_scratch();
  RowScores scores(params.shaping, row, scratch);
  scores.scan(threads);
  Filters filters(params.shaping, row);

  const RowStatus status = status_over_temperature(scores, filters);
  params.status[row] = status;
  if (status != kOk || filters.greedy()) {
    params.token_ids[row] = scores.argmax();
    if (params.logprobs == nullptr) return;
    if (status != kOk) return write_no_logprobs(params, row);
    filters = Filters();
    const Survivors all(scores, filters, scratch);
    return write_logprobs(params, row, all, scores.max_score(), scratch);
  }

  if (!filters.any() && params.logprobs == nullptr && filters.temperature >= kSmallestReciprocal) {
    const Winner winner = with_noise(params, row, twister, [&](const auto& noise) {
      return race_unfiltered(scores, filters.temperature, noise, threads);
    });
    params.token_ids[row] = winner.token_id >= 0 ? winner.token_id : scores.argmax();
    return;
  }

  Survivors survivors(scores, filters, scratch);
  survivors.apply_filters();
  Winner winner = with_noise(params, row, twister,
                             [&](const auto& noise) { return race_survivors(scores, survivors, noise, threads); });
  // Given noise may be NaN everywhere.
  if (winner.token_id < 0) winner = largest_survivor(survivors);
  params.token_ids[row] = winner.token_id;
  if (params.logprobs != nullptr) write_logprobs(params, row, survivors, winner.score, scratch);
}

// Rows draw from one generator in turn: each gets a copy of it that stands at the row's first word.
void sample_rows_with_torch_noise(const SampleParams& params, const Split& split) {
  constexpr int64_t kRowsAtOnce = 64;
  MersenneTwister twister;
  twister.read_torch_state(params.generator_state);
  Buffer<MersenneTwister> of_row;
  of_row.reserve(std::min(kRowsAtOnce, params.shaping.rows));
  for (int64_t first = 0; first < params.shaping.rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, params.shaping.rows - first);
    for (int64_t i = 0; i < count; ++i) {
      of_row[i] = twister;
      twister.skip(2 * params.shaping.vocab_size);
    }
    parallel_rows(count, split.over_rows, [&](int64_t i) { sample_row(params, first + i, split.in_row, &of_row[i]); });
  }
  twister.write_torch_state(params.generator_state);
}

// Appends the tokens; a finished row gets the pad token instead of its draw.
void extend_sequences(const SampleParams& params) {
  const StateParams& state = params.state;
  int64_t unfinished = 0;
  for (int64_t row = 0; row < params.shaping.rows; ++row) {
    int64_t& token = params.token_ids[row];
    if (state.finished[row] != 0) {
      token = state.pad_token_id;
    } else {
      ++state.num_generated[row];
      for (int64_t i = 0; i < state.eos_count; ++i)
        if (token == state.eos_token_ids[i]) state.finished[row] = 1;
    }
    const int64_t column = state.append_offset + knob_at(params.step, row);
    state.token_ids[row * state.token_ids_stride + column] = token;
    if (state.history != state.token_ids) state.history[row * state.history_stride + column] = token;
    unfinished += state.finished[row] == 0;
  }
  *state.unfinished = unfinished;
}

}  // namespace

void sample(const SampleParams& params) {
  const Split split = split_threads(params.shaping.rows, params.shaping.vocab_size, params.shaping.threads);
  if (params.rng == Rng::kTorch) {
    sample_rows_with_torch_noise(params, split);
  } else {
    parallel_rows(params.shaping.rows, split.over_rows,
                  [&](int64_t row) { sample_row(params, row, split.in_row, nullptr); });
  }
  if (params.state.token_ids != nullptr) extend_sequences(params);
}

}  // namespace pygen::cpu::PYGEN_ISA
