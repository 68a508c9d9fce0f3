// beam_step: one pass over a row's logits gives its log-sum-exp and block maxima; the blocks that can hold one of the K
// best continuations are looked at again, and each prompt's candidates are merged into its beams. Bytes per row: one
// read of the logits from memory.
//
// Beams of a prompt share a bar, the K-th best value that one of them has reached: a later beam gathers only what
// passes it. The bar decides how much is looked at, never the result.
#include <cmath>

#include "common/beam_params.h"
#include "cpu/beam_update.h"
#include "cpu/candidates.h"
#include "cpu/isa.h"
#include "cpu/largest.h"
#include "cpu/noise.h"
#include "cpu/parallel.h"
#include "cpu/race.h"
#include "cpu/row_scores.h"
#include "cpu/survivors.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

// A maximum that threads raise together.
class Bar {
 public:
  double get() const {
    int64_t bits = __atomic_load_n(&bits_, __ATOMIC_RELAXED);
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  void raise(double value) {
    int64_t wanted, seen = __atomic_load_n(&bits_, __ATOMIC_RELAXED);
    std::memcpy(&wanted, &value, sizeof(wanted));
    for (;;) {
      double current;
      std::memcpy(&current, &seen, sizeof(current));
      if (!(value > current)) return;
      if (__atomic_compare_exchange_n(&bits_, &seen, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
    }
  }
  void reset() {
    const double lowest = -std::numeric_limits<double>::infinity();
    std::memcpy(&bits_, &lowest, sizeof(bits_));
  }

 private:
  int64_t bits_;
};

// Continuations whose sum reaches the bar and may be among the best.
void collect_best(const RowScores& row, float running, int64_t count, double bar, TopCandidates& top) {
  float cut = static_cast<float>(bar);
  if (count <= row.blocks() / 2) cut = std::max(cut, lower_bound_of_largest(row, count) + running);
  if (row.max_score() + running < cut) return;
  const float* maxima = row.block_max();
  const F32 offset = broadcast(running);
  float buffer[kBlock];
  for (int64_t b = 0; b < row.blocks(); ++b) {
    if (!(maxima[b] + running >= cut)) continue;
    const float* scores = row.block(b, buffer);
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const F32 sums = load(scores + i) + offset;
      for (Bits bits = ge(sums, broadcast(cut)); bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        const float sum = scores[i + lane] + running;
        top.offer(sum, b * kBlock + i + lane, sum);
      }
    }
    cut = std::max(cut, static_cast<float>(top.reached()));
  }
}

// Draws among the survivors of the filters.
template <typename Noise>
void collect_drawn(const RowScores& row, const Survivors& survivors, float running, Noise noise, TopCandidates& top) {
  const auto finish = [running](float score) { return score + running; };
  if (survivors.token_ids() != nullptr) return race_list(survivors, noise, finish, top);
  const float temperature = survivors.temperature();
  const auto get = [&](int64_t b, float* buffer) { return survivors.block(b, buffer); };
  const auto max_of = [&](int64_t b) { return row.block_max()[b] / temperature; };
  race_blocks(0, row.blocks(), noise, max_of, get, 1.0f, finish, survivors.low(), survivors.high(), top);
}

// `beam` counts over all prompts. The next word of `twister` is the first of its noise.
void expand_beam(const BeamParams& params, int64_t beam, int threads, Bar& bar, MersenneTwister* twister) {
  const int64_t row = params.slots[beam];
  const float running = params.running_scores[beam];
  Scratch& scratch = thread_scratch();
  RowScores scores(params.shaping, row, scratch);
  if (params.normalized) {
    scores.scan(threads);
  } else {
    scores.scan_log_softmax(threads);
  }
  Filters filters = filters_of(params.shaping, row);
  const RowStatus status = scores.status();
  params.status[row] = status;
  params.count_of_row[beam] = 0;
  if (status != kOk || running == -kInf) return;

  TopCandidates top(params.num_candidates, beam % params.num_beams, running);
  if (params.do_sample) {
    fit_temperature(filters, scores);
    Survivors survivors(scores, filters, scratch);
    apply_filters(survivors, filters, survivors.max_score());
    top.origin = survivors.max_score() + running;
    with_noise(params, beam, step_of(params), twister,
               [&](const auto& noise) { collect_drawn(scores, survivors, running, noise, top); });
  } else {
    collect_best(scores, running, params.num_candidates, bar.get(), top);
  }
  auto* out = static_cast<Candidate*>(params.best_of_row) + beam * params.num_candidates;
  params.count_of_row[beam] = top.write(out);
  bar.raise(top.reached());
  if (!params.do_sample) return;
  for (int64_t i = 0; i < params.count_of_row[beam]; ++i)
    out[i].value -= static_cast<double>(out[i].score) - top.origin;
}

// The K best of all beams of a prompt, best first, or by score what was drawn.
void merge_candidates(const BeamParams& params, int64_t prompt) {
  const int64_t count = params.num_candidates;
  Buffer<Candidate>& all = candidate_scratch();
  all.clear();
  for (int64_t beam = prompt * params.num_beams; beam < (prompt + 1) * params.num_beams; ++beam) {
    const auto* of_row = static_cast<const Candidate*>(params.best_of_row) + beam * count;
    for (int64_t i = 0; i < params.count_of_row[beam]; ++i) all.push(of_row[i]);
  }
  if (params.do_sample) {
    float best = -kInf;
    for (int64_t i = 0; i < all.size(); ++i) best = std::max(best, all[i].score);
    for (int64_t i = 0; i < all.size(); ++i) all[i].value += static_cast<double>(all[i].score) - best;
  }
  const int64_t found = std::min(count, all.size());
  std::partial_sort(all.data(), all.data() + found, all.data() + all.size(), BetterCandidate{});
  if (params.sorts_draws) {
    const auto scores_more = [](const Candidate& a, const Candidate& b) { return a.score > b.score; };
    std::stable_sort(all.data(), all.data() + found, scores_more);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = prompt * count + i;
    params.candidate_ids[at] = i < found ? all[i].token_id : -1;
    params.candidate_parents[at] = i < found ? all[i].parent : -1;
    params.candidate_scores[at] = i < found ? all[i].score : -kInf;
  }
}

void select_candidates(const BeamParams& params) {
  const ShapingParams& shaping = params.shaping;
  const int64_t prompts = shaping.rows / params.num_beams;
  const Split split = split_threads(shaping.rows, shaping.vocab_size, shaping.threads);
  // What follows the draws must not fail: the generator would have advanced.
  candidate_scratch().reserve(params.num_beams * params.num_candidates);
  reserve_beam_scratch(beam_scratch(), params.num_beams, params.num_candidates);
  Buffer<Bar> bars;
  bars.reserve(prompts);
  for (int64_t i = 0; i < prompts; ++i) bars[i].reset();
  const auto expand = [&](int64_t beam, MersenneTwister* twister) {
    expand_beam(params, beam, split.in_row, bars[beam / params.num_beams], twister);
  };
  if (params.do_sample && params.rng == Rng::kTorch) {
    rows_with_torch_noise(params.generator_state, shaping, split.over_rows, expand);
  } else {
    parallel_rows(shaping.rows, split.over_rows, [&](int64_t beam) { expand(beam, nullptr); });
  }
  for (int64_t prompt = 0; prompt < prompts; ++prompt) merge_candidates(params, prompt);
}

}  // namespace

void beam_step(const BeamParams& params) {
  if (comes_too_late(params)) {
    for (int64_t row = 0; row < params.shaping.rows; ++row) give_unmoved_row(params, row);
    return;
  }
  if (params.select) select_candidates(params);
  if (params.advance) advance_beams(params);
}

}  // namespace pygen::cpu::PYGEN_ISA
