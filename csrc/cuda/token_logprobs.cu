// token_logprobs: one pass over a row's logits gives the maxima and sums of its tiles, and with them its log-sum-exp;
// the best tokens are in the few tiles whose maximum reaches a bound. Bytes per row: one read of the logits.
#include "cuda/geometry.h"
#include "cuda/logit_at.cuh"
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

// By value, so that in the kernel the arguments stay in registers.
template <DType kDType>
PYGEN_COLD void write_top_of_row(TopLogprobs top, RowScores<kDType> scores, RowTeam team, float largest,
                                 const LogSum& log_sum) {
  RowView<kDType> view(scores, team, 1.0f, largest);
  write_top_of_view(top, view, team, largest, log_sum);
}

// Without the best tokens a row needs so few registers that several blocks share a multiprocessor.
template <DType kDType, bool kWithTop>
__global__ void __launch_bounds__(kThreads, kWithTop ? 1 : 2)
    score_rows(const LogprobParams params, const ShapingParams logits, const RowLaunch launch) {
  const int64_t row = blockIdx.x / launch.geometry.cluster;
  SharedMemory shared;
  const RowSmem smem(shared);
  RowTeam team(launch.geometry.cluster, smem);
  const RowScores<kDType> scores(logits, launch.geometry, row, 0, nullptr, true, shared);
  team.sync();
  const bool nan = scores.scan(1.0f, [](const float (&)[RowScores<kDType>::kCount], int, float) {});
  const RowFacts facts = facts_of_scan(scores, team, nan);

  LogSum log_sum;
  if (team.leads()) {
    if (facts.status == kOk)
      log_sum =
          log_sum_exp(facts.max_score, masses_of_tiles(scores, 1.0f, facts.max_score, kInfinity, smem.reduce).all);
    write_logprobs<kDType>(params, row, facts.status, log_sum);
  }
  if constexpr (!kWithTop) return;
  const TopLogprobs top{params.top_ids + row * params.num_top, params.top_logprobs + row * params.num_top,
                        params.num_top};
  if (facts.status != kOk) {
    if (team.leads()) top.write_none();
    return;
  }
  const int also = static_cast<int>(params.num_top < params.vocab_size ? params.num_top : params.vocab_size);
  const bool listed = filter_list(scores, team, Filters(), facts.max_score, also,
                                  [&](const SortedList& list, double) { top.write(list, 0, true, log_sum); });
  if (!listed) write_top_of_row(top, scores, team, facts.max_score, log_sum);
}

template <DType kDType>
Error launch_rows(const LogprobParams& params, const Context& context) {
  ShapingParams logits;
  logits.rows = params.rows;
  logits.vocab_size = params.vocab_size;
  logits.dtype = kDType;
  logits.logits = params.logits;
  logits.logits_stride = params.logits_stride;
  const bool rereads = params.num_top > kMaxWanted && params.vocab_size > kListCapacity;
  const auto kernel = params.num_top > 0 ? score_rows<kDType, true> : score_rows<kDType, false>;
  const RowLaunch rows = plan_rows<kDType>(logits, context.device, address_of(kernel), true, rereads);
  const Launch launch = launch_of_rows(params.rows, rows.geometry, shared_of<kDType>(rows), context);
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
