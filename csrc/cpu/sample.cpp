// sample: one pass over a row's logits gives block maxima; the filters turn them into an interval of scores; the
// exponential race draws among the survivors, and the row's bookkeeping follows. Exact: no row is sorted and no
// threshold is sampled. Bytes per row: one read of the logits from memory; later passes find the row, or its copy as
// float32, in the cache.
#include <cmath>
#include <optional>

#include "common/sample_params.h"
#include "cpu/isa.h"
#include "cpu/kept_tokens.h"
#include "cpu/parallel.h"
#include "cpu/race.h"
#include "cpu/row_scores.h"
#include "cpu/survivors.h"
#include "cpu/top_logprobs.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
// Below it the reciprocal of a temperature may overflow where the quotient does not.
constexpr float kSmallestReciprocal = 1e-6f;
// Up to here a double holds a score and its noise together.
constexpr float kLargestWithNoise = 0x1p20f;

// Without a filter the row is raced in place; without edits, while it is scanned.
template <typename Noise>
Winner race_unfiltered(RowScores& row, float temperature, const Noise& noise, int threads) {
  const auto get = [&](int64_t b, float* buffer) { return row.block(b, buffer); };
  const auto finish = [temperature](float score) { return score / temperature; };
  const float scale = 1.0f / temperature;
  if (row.has_edits()) {
    row.scan(threads);
    if (row.status() != kOk) return {};
    return race_in_parts(row.blocks(), noise, threads, 0.0f,
                         [&](int64_t begin, int64_t end, Noise& own, Winner& winner, int) {
                           const auto max_of = [&](int64_t b) { return row.block_max()[b]; };
                           race_blocks(begin, end, own, max_of, get, scale, finish, -kInf, kInf, winner);
                         });
  }
  Bits nan_of_part[kMaxRaceParts] = {};
  const Winner best = race_in_parts(row.blocks(), noise, threads, 0.0f,
                                    [&](int64_t begin, int64_t end, Noise& own, Winner& winner, int part) {
                                      Bits nan = 0;
                                      const auto max_of = [&](int64_t b) { return row.scan_block(b, nan); };
                                      race_blocks(begin, end, own, max_of, get, scale, finish, -kInf, kInf, winner);
                                      nan_of_part[part] = nan;
                                    });
  Bits nan = 0;
  for (const Bits of_part : nan_of_part) nan |= of_part;
  row.conclude(nan);
  return best;
}

template <typename Noise>
Winner race_survivors(const RowScores& row, const Survivors& survivors, Noise noise, int threads) {
  const auto finish = [](float score) { return score; };
  if (survivors.token_ids() != nullptr) {
    Winner winner;
    winner.origin = survivors.max_score();
    race_list(survivors, noise, finish, winner);
    return winner;
  }
  const float temperature = survivors.temperature();
  const auto get = [&](int64_t b, float* buffer) { return survivors.block(b, buffer); };
  const auto max_of = [&](int64_t b) { return row.block_max()[b] / temperature; };
  return race_in_parts(row.blocks(), noise, threads, survivors.max_score(),
                       [&](int64_t begin, int64_t end, Noise& own, Winner& best, int) {
                         race_blocks(begin, end, own, max_of, get, 1.0f, finish, survivors.low(), survivors.high(),
                                     best);
                       });
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
  const LogSum log_sum = survivors.log_sum_exp();
  params.logprobs[row] = log_probability(score, log_sum);
  if (params.top_ids == nullptr) return;
  Buffer<ScoredToken>& best = scratch.ordered;
  best.clear();
  const float* scores = survivors.scores();
  const int32_t* ids = survivors.token_ids();
  for (int64_t i = 0; i < survivors.size(); ++i)
    if (survivors.keeps(scores[i])) best.push({scores[i], ids != nullptr ? ids[i] : static_cast<int32_t>(i)});
  const int64_t count = params.num_logprobs;
  write_top_logprobs(best, count, log_sum, params.top_ids + row * count, params.top_logprobs + row * count);
}

void write_no_logprobs(const SampleParams& params, int64_t row) {
  params.logprobs[row] = kNaN;
  const int64_t count = params.num_logprobs;
  if (params.top_ids != nullptr)
    write_no_top_logprobs(count, params.top_ids + row * count, params.top_logprobs + row * count);
}

// The next word of `twister` is the row's first; null unless the noise is torch's.
void sample_row(const SampleParams& params, int64_t row, int threads, MersenneTwister* twister) {
  Scratch& scratch = thread_scratch();
  RowScores scores(params.shaping, row, scratch);
  Filters filters = filters_of(params.shaping, row);
  const KeptParams& kept = params.kept;
  bool unfiltered = !is_greedy(filters) && !has_filters(filters) && params.logprobs == nullptr &&
                    kept.counts == nullptr && filters.temperature >= kSmallestReciprocal;
  Winner winner;
  if (unfiltered) {
    std::optional<MersenneTwister> before;
    if (twister != nullptr) before = *twister;
    winner = with_noise(params, row, knob_at(params.step, row), twister, [&](const auto& noise) {
      return race_unfiltered(scores, filters.temperature, noise, threads);
    });
    unfiltered = scores.status() != kOk || std::fabs(scores.max_score()) / filters.temperature < kLargestWithNoise;
    if (!unfiltered && before) *twister = *before;
  } else {
    scores.scan(threads);
  }

  const RowStatus status = scores.status();
  fit_temperature(filters, scores);
  params.status[row] = status;
  if (status != kOk || is_greedy(filters)) {
    params.token_ids[row] = scores.argmax();
    if (kept.counts != nullptr) {
      if (status == kOk) {
        write_one_kept(kept, row, params.token_ids[row], scores.max_score());
      } else {
        write_none_kept(kept, row);
      }
    }
    if (params.logprobs == nullptr) return;
    if (status != kOk) return write_no_logprobs(params, row);
    filters = Filters();
    const Survivors all(scores, filters, scratch);
    return write_logprobs(params, row, all, scores.max_score(), scratch);
  }
  if (unfiltered) {
    // Given noise may be NaN everywhere; so below.
    params.token_ids[row] = winner.token_id >= 0 ? winner.token_id : scores.argmax();
    return;
  }

  Survivors survivors(scores, filters, scratch);
  apply_filters(survivors, filters, survivors.max_score());
  winner = with_noise(params, row, knob_at(params.step, row), twister,
                      [&](const auto& noise) { return race_survivors(scores, survivors, noise, threads); });
  if (winner.token_id < 0) winner = largest_survivor(survivors);
  params.token_ids[row] = winner.token_id;
  if (kept.counts != nullptr) write_kept(kept, row, scores, survivors);
  if (params.logprobs != nullptr) write_logprobs(params, row, survivors, winner.score, scratch);
}

// Appends the tokens; a finished row gets the pad token instead of its draw, and keeps no tokens.
void extend_sequences(const SampleParams& params) {
  const StateParams& state = params.state;
  int64_t unfinished = 0;
  for (int64_t row = 0; row < params.shaping.rows; ++row) {
    int64_t& token = params.token_ids[row];
    if (state.finished[row] != 0) {
      token = state.pad_token_id;
      if (params.kept.counts != nullptr) write_none_kept(params.kept, row);
    } else {
      ++state.num_generated[row];
      for (int64_t i = 0; i < state.eos_count; ++i)
        if (token == state.eos_token_ids[i]) state.finished[row] = 1;
    }
    const int64_t column = state.append_offset + knob_at(params.step, row);
    state.token_ids[row * state.token_ids_stride + column] = token;
    if (state.history != state.token_ids) state.history[row * state.history_stride + column] = token;
    unfinished += state.finished[row] == 0;
    if (state.steps != nullptr) ++state.steps[row];
  }
  *state.unfinished = unfinished;
}

}  // namespace

void sample(const SampleParams& params) {
  const Split split = split_threads(params.shaping.rows, params.shaping.vocab_size, params.shaping.threads);
  if (params.rng == Rng::kTorch) {
    rows_with_torch_noise(
        params.generator_state, params.shaping, split.over_rows,
        [&](int64_t row, MersenneTwister* twister) { sample_row(params, row, split.in_row, twister); });
  } else {
    parallel_rows(params.shaping.rows, split.over_rows,
                  [&](int64_t row) { sample_row(params, row, split.in_row, nullptr); });
  }
  if (params.state.token_ids != nullptr) extend_sequences(params);
}

}  // namespace pygen::cpu::PYGEN_ISA
