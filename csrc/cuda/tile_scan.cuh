// A tile's maximum and sum, vector by vector, in a thread's registers.
#pragma once

#include "cuda/row_layout.cuh"

namespace pygen::cuda {

// What a scan keeps of each tile.
enum class Keep {
  kMaxima,
  kSums,  // and the sums of e^((score - maximum) / temperature)
  kRaw,   // the maxima of the scores, and maxima and sums of the logits
};

template <DType kType>
class TileScan {
 public:
  using Vector = LogitVector<kType>;
  static constexpr int kCount = Vector::kCount;

  // The largest score, NaN where there is one; the same of the logits; and the sum of the masses.
  PYGEN_DEVICE float largest() const { return max_or_nan(composed_top_, Vector::largest(top_)); }
  PYGEN_DEVICE float largest_logit() const { return Vector::largest(raw_top_); }
  PYGEN_DEVICE float sum() const { return sum_; }

  // A vector whose scores are its logits `seen`; `raw`: with those that are hidden. `scale`: log2(e) / temperature.
  template <Keep kKeep>
  PYGEN_DEVICE void add_logits(const uint4& raw, const uint4& seen, float scale) {
    if constexpr (kKeep == Keep::kSums) {
      const uint32_t largest = Vector::larger(seen);
      top_ = Vector::larger(top_, largest);
      add_masses(seen, Vector::largest(largest), scale);
    } else {
      top_ = Vector::larger(top_, seen);
      if constexpr (kKeep == Keep::kRaw) add_raw(raw, scale);
    }
  }

  // A vector's scores. Returns the largest of them.
  template <Keep kKeep>
  PYGEN_DEVICE float add_scores(const float (&x)[kCount], float scale) {
    float largest = x[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) largest = max_or_nan(largest, x[i]);
    composed_top_ = max_or_nan(composed_top_, largest);
    if constexpr (kKeep == Keep::kSums) add_masses(x, largest, scale);
    return largest;
  }

  // The logits, where kRaw and add_scores() got the scores.
  PYGEN_DEVICE void add_raw(const uint4& raw, float scale) {
    const uint32_t largest = Vector::larger(raw);
    raw_top_ = Vector::larger(raw_top_, largest);
    add_masses(raw, Vector::largest(largest), scale);
  }

 private:
  PYGEN_DEVICE void add_masses(const uint4& raw, float largest, float scale) {
    float x[kCount];
    Vector::unpack(raw, x);
    add_masses(x, largest, scale);
  }
  PYGEN_DEVICE void add_masses(const float (&x)[kCount], float largest, float scale) {
    const float now = fmaxf(reference_, largest);
    sum_ = sum_ * exp2_about((reference_ - now) * scale);
    reference_ = now;
    // In pairs, so that few roundings follow each other.
    float masses[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) masses[i] = exp2_about((x[i] - now) * scale);
#pragma unroll
    for (int width = kCount / 2; width > 0; width /= 2) {
#pragma unroll
      for (int i = 0; i < width; ++i) masses[i] = masses[i] + masses[i + width];
    }
    sum_ += masses[0];
  }

  uint32_t top_ = Vector::kMinusInfinity, raw_top_ = Vector::kMinusInfinity;
  float composed_top_ = -kInfinity;
  float sum_ = 0.0f, reference_ = kLowestFloat;  // of the masses, relative to the largest so far
};

}  // namespace pygen::cuda
