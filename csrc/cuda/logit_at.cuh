// A single logit.
#pragma once

#include "cuda/row_layout.cuh"

namespace pygen::cuda {

template <DType kDType>
PYGEN_DEVICE float logit_at(const void* logits, int64_t at) {
  using Vector = LogitVector<kDType>;
  const uint32_t bits = Vector::load(static_cast<const char*>(logits) + at * Vector::kBytes);
  if constexpr (kDType == DType::kFloat32) {
    return float_of(bits);
  } else {
    return Vector::from_half(bits);
  }
}

PYGEN_DEVICE float logit_at(DType dtype, const void* logits, int64_t at) {
  switch (dtype) {
    case DType::kFloat16: return logit_at<DType::kFloat16>(logits, at);
    case DType::kBFloat16: return logit_at<DType::kBFloat16>(logits, at);
    default: return logit_at<DType::kFloat32>(logits, at);
  }
}

}  // namespace pygen::cuda
