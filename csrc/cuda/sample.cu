// sample: one launch from raw logits to token, log-probabilities and the row's bookkeeping, and for many rows two. One
// pass over a row's logits gives the maxima of its tiles. The filters and the race then read only the few tiles that
// can hold a survivor.
#include "cuda/bookkeeping.cuh"
#include "cuda/geometry.h"
#include "cuda/sample_kernels.h"

namespace pygen::cuda {
namespace {

// Whether the knobs, the same for all rows, leave the row to a list: greedy rows, and those that top_k, top_p or min_p
// filters and no other.
bool are_listed(const ShapingParams& p) {
  if (p.top_k.per_row != nullptr || p.top_p.per_row != nullptr || p.min_p.per_row != nullptr) return false;
  ShapingParams others = p;
  others.top_k = Knob<int64_t>{0};
  others.top_p = Knob<float>{1};
  others.min_p = Knob<float>{0};
  if (may_have_filters(others)) return false;
  const bool filtered = (p.top_k.value > 0 && p.top_k.value < p.vocab_size) || p.top_p.value < 1 || p.min_p.value > 0;
  return filtered || (p.temperature.per_row == nullptr && p.temperature.value == 0);
}

bool are_plain(const ShapingParams& p) {
  return !may_have_filters(p) && p.temperature.per_row == nullptr && p.temperature.value != 0;
}

template <DType kType>
Error launch_sample(const SampleParams& params, const Context& context) {
  const ShapingParams& shaping = params.shaping;
  if (params.kept.counts != nullptr || is_shaped<kType>(shaping, context.device)) return sample_any(params, context);
  if (are_plain(shaping)) return sample_plain(params, context);
  if (!are_listed(shaping)) return sample_any(params, context);
  return shaping.rows < kManyRows ? sample_listed(params, context) : sample_many(params, context);
}

}  // namespace

size_t sample_workspace(const SampleParams& params, const Device& device) {
  return kCounterBytes + extra_workspace(params.shaping, device) + tiles_workspace(params.shaping);
}

Error sample(const SampleParams& params, const Context& context) {
  if (params.shaping.rows == 0) return 0;
  SampleParams own = params;
  if (own.rng == Rng::kTorch && own.torch_noise.threads == 0)
    set_torch_launch(own.torch_noise, own.shaping.rows * own.shaping.vocab_size, context.device.multiprocessors,
                     context.device.threads_per_multiprocessor);
  switch (own.shaping.dtype) {
    case DType::kFloat16: return launch_sample<DType::kFloat16>(own, context);
    case DType::kBFloat16: return launch_sample<DType::kBFloat16>(own, context);
    default: return launch_sample<DType::kFloat32>(own, context);
  }
}

}  // namespace pygen::cuda
