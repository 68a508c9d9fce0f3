// token_logprobs: one pass over a row's logits gives the maxima and sums of its tiles, and with them its log-sum-exp;
// the best tokens are in the few tiles whose maximum reaches a bound. Bytes per row: one read of the logits.
#include "cuda/geometry.h"
#include "cuda/logit_at.cuh"
#include "cuda/scanned_row.cuh"
#include "cuda/top_logprobs.cuh"

namespace pygen::cuda {
namespace {

constexpr float kNaN = __builtin_nanf("");

template <DType kDType>
PYGEN_DEVICE void write_logprobs(const LogprobParams& params, int64_t row, RowStatus status, const LogSum& log_sum) {
  if (thread_index() == 0) params.status[row] = status;
  const int64_t* ids = params.token_ids + row * params.token_ids_stride;
  for (int64_t i = thread_index(); i < params.num_tokens; i += kThreads) {
    const int64_t id = ids[i];
    const bool known = status == kOk && id >= 0 && id < params.vocab_size;
    const float logit = known ? logit_at<kDType>(params.logits, row * params.logits_stride + id) : kNaN;
    params.logprobs[row * params.num_tokens + i] = log_probability(logit, log_sum);
  }
}

template <DType kType>
struct LogprobRow : ScannedRow<kType, false> {
  PYGEN_DEVICE LogprobRow(const ShapingParams& logits, const RowLaunch& launch, int turn = 0)
      : ScannedRow<kType, false>(logits, launch, nullptr, turn) {}
};

PYGEN_DEVICE TopLogprobs top_of(const LogprobParams& params, int64_t row) {
  return {params.top_ids + row * params.num_top, params.top_logprobs + row * params.num_top, params.num_top};
}

// Where no list is enough. All threads of the row.
template <DType kType>
PYGEN_COLD void write_top_of_row(const LogprobParams& params, const ShapingParams& logits, const RowLaunch& launch,
                                 float largest, const LogSum& log_sum, int extra_count, int turn) {
  LogprobRow<kType> self(logits, launch, turn);
  self.scores.resume(extra_count);
  RowView<RowScores<kType, false>> view(self.view, self.scores, self.team, 1.0f, largest);
  write_top_of_view(top_of(params, self.row), view, self.team, largest, log_sum);
  self.team.sync();
}

// Without the best tokens a row needs so few registers that several blocks share a multiprocessor.
template <DType kType, bool kWithTop>
__global__ void __launch_bounds__(kThreads, kWithTop ? 1 : 2)
    score_rows(const __grid_constant__ LogprobParams params, const __grid_constant__ ShapingParams logits,
               const __grid_constant__ RowLaunch launch) {
  LogprobRow<kType> self(logits, launch);
  self.scores.start();
  const bool leads = self.team.leads();
  self.scores.hide_extra(logits, self.row, leads, self.smem.reduce);
  if (leads) self.scores.score_extra();
  self.scores.template scan<Keep::kSums>(1.0f, NoVisit{});
  self.scores.bring_together(launch.geometry.cluster);

  LogSum log_sum;
  RowFacts facts{0.0f, kOk};
  bool listed = true;
  if (leads) {
    facts = facts_of_row(self.scores, self.smem);
    if (facts.status == kOk)
      log_sum = log_sum_exp(facts.max_score,
                            masses_of_row(self.scores, 1.0f, facts.max_score, kInfinity, self.smem.reduce).all);
    write_logprobs<kType>(params, self.row, facts.status, log_sum);
    if (kWithTop && facts.status == kOk) {
      const int also = static_cast<int>(params.num_top < params.vocab_size ? params.num_top : params.vocab_size);
      listed =
          filter_list(self.scores, self.smem, Filters(), facts.max_score, also,
                      [&](const SortedList& list, double) { top_of(params, self.row).write(list, 0, true, log_sum); });
    } else if (kWithTop) {
      top_of(params, self.row).write_none();
    }
  }
  // The block that leads reads the others' shared memory until here.
  uint64_t words[2] = {static_cast<uint64_t>(listed), static_cast<uint64_t>(bits_of(facts.max_score))};
  self.team.take_from_leader(words);
  if (!kWithTop || words[0] != 0) return;
  write_top_of_row<kType>(params, logits, launch, float_of(static_cast<uint32_t>(words[1])), log_sum,
                          self.scores.extra().count(), self.team.turn());
}

template <DType kType>
Error launch_rows(const LogprobParams& params, const Context& context) {
  ShapingParams logits;
  logits.rows = params.rows;
  logits.vocab_size = params.vocab_size;
  logits.dtype = kType;
  logits.logits = params.logits;
  logits.logits_stride = params.logits_stride;
  const bool rereads = params.num_top > kMaxWanted && params.vocab_size > kListCapacity;
  const auto kernel = params.num_top > 0 ? score_rows<kType, true> : score_rows<kType, false>;
  RowNeeds needs;
  needs.sums = true;
  const RowLaunch rows = plan_rows<kType>(logits, context.device, address_of(kernel), needs, true, rereads);
  const Launch launch = launch_of_rows(params.rows, rows.geometry, shared_of<kType>(rows, params.vocab_size), context);
  return launch_kernel(kernel, launch, params, logits, rows);
}

}  // namespace

Error token_logprobs(const LogprobParams& params, const Context& context) {
  if (params.rows == 0) return 0;
  switch (params.dtype) {
    case DType::kFloat16: return launch_rows<DType::kFloat16>(params, context);
    case DType::kBFloat16: return launch_rows<DType::kBFloat16>(params, context);
    default: return launch_rows<DType::kFloat32>(params, context);
  }
}

}  // namespace pygen::cuda
