// token_logprobs: one pass over a row's logits gives its log-sum-exp and block maxima; the best tokens lie in the few
// blocks whose maximum reaches a bound of the largest. Bytes per row: one read of the logits from memory.
#include <algorithm>
#include <limits>

#include "common/logprob_params.h"
#include "cpu/isa.h"
#include "cpu/largest.h"
#include "cpu/parallel.h"
#include "cpu/row_scores.h"
#include "cpu/top_logprobs.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Every score that may be among the `count` best, and no removed one.
void collect_best(const RowScores& row, int64_t count, Buffer<ScoredToken>& best) {
  best.clear();
  const float lowest = std::numeric_limits<float>::lowest();
  const float bound = count <= row.blocks() / 2 ? std::max(lowest, lower_bound_of_largest(row, count)) : lowest;
  const F32 bound_v = broadcast(bound);
  float buffer[kBlock];
  for (int64_t b = 0; b < row.blocks(); ++b) {
    if (!(row.block_max()[b] >= bound)) continue;
    const float* scores = row.block(b, buffer);
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      for (Bits bits = ge(load(scores + i), bound_v); bits != 0; bits &= bits - 1) {
        const int64_t at = i + __builtin_ctz(bits);
        best.push({scores[at], static_cast<int32_t>(b * kBlock + at)});
      }
    }
  }
}

void score_row(const LogprobParams& params, const ShapingParams& logits, int64_t row, int threads) {
  Scratch& scratch = thread_scratch();
  RowScores scores(logits, row, scratch);
  const double rest = scores.scan_log_sum(threads);
  const LogSum log_sum{scores.max_score(), rest};
  const bool ok = scores.status() == kOk;
  params.status[row] = scores.status();
  const int64_t* ids = params.token_ids + row * params.token_ids_stride;
  for (int64_t i = 0; i < params.num_tokens; ++i) {
    const bool known = ok && ids[i] >= 0 && ids[i] < params.vocab_size;
    params.logprobs[row * params.num_tokens + i] = known ? log_probability(scores.logit(ids[i]), log_sum) : kNaN;
  }
  if (params.num_top == 0) return;
  int64_t* top_ids = params.top_ids + row * params.num_top;
  float* top_logprobs = params.top_logprobs + row * params.num_top;
  if (!ok) return write_no_top_logprobs(params.num_top, top_ids, top_logprobs);
  collect_best(scores, params.num_top, scratch.ordered);
  write_top_logprobs(scratch.ordered, params.num_top, log_sum, top_ids, top_logprobs);
}

}  // namespace

void token_logprobs(const LogprobParams& params) {
  ShapingParams logits;
  logits.rows = params.rows;
  logits.vocab_size = params.vocab_size;
  logits.dtype = params.dtype;
  logits.logits = params.logits;
  logits.logits_stride = params.logits_stride;
  const Split split = split_threads(params.rows, params.vocab_size, params.threads);
  parallel_rows(params.rows, split.over_rows, [&](int64_t row) { score_row(params, logits, row, split.in_row); });
}

}  // namespace pygen::cpu::PYGEN_ISA
