// The noise E of the exponential race, token by token.
#pragma once

#include <cmath>

#include "common/draft_params.h"
#include "common/ordered_key.h"
#include "common/philox.h"
#include "common/sample_params.h"
#include "cuda/floats.cuh"
#include "cuda/reduce.cuh"

namespace pygen {

// The step whose noise a row draws with.
PYGEN_DEVICE int64_t step_of(const SampleParams& params, int64_t row) { return knob_at(params.step, row); }

namespace cuda {

// Called rather than inlined in many places: a kernel's code is small, and few rows get here.
PYGEN_COLD float torch_exponential_at(const TorchCudaNoise* noise, uint64_t seed, uint64_t offset, int64_t n) {
  return torch_cuda_exponential(torch_cuda_word(*noise, seed, offset, n));
}
PYGEN_COLD double exponential_of_word(uint32_t word) { return -log1p(-static_cast<double>(uniform_from_word(word))); }

// What races, in float32: a score and the noise E.
PYGEN_DEVICE float value_about(float score, float exponential) {
  return fmaxf(score - logf(exponential), kLowestFloat);
}
// Of one row. `row` is that of the noise: a beam for beam_step.
class RowNoise {
 public:
  template <typename Params>
  PYGEN_DEVICE RowNoise(const Params& params, int64_t row, int64_t step) : kind_(params.rng) {
    if (kind_ == Rng::kPhilox) {
      seed_ = static_cast<uint64_t>(params.seeds[row]);
      step_ = static_cast<uint32_t>(step);
    } else if (kind_ == Rng::kGiven) {
      given_ = params.noise + row * params.noise_stride;
    } else {
      torch_ = &params.torch_noise;
      seed_ = torch_->generator != nullptr ? torch_->generator[0] : torch_->seed;
      offset_ = torch_->generator != nullptr ? torch_->generator[1] : torch_->offset;
      first_ = row * params.shaping.vocab_size;
    }
  }

  PYGEN_DEVICE RowNoise(const DraftParams& params, int64_t row, uint32_t step) : kind_(params.rng), step_(step) {
    if (kind_ == Rng::kPhilox) {
      seed_ = static_cast<uint64_t>(params.seeds[row]);
    } else {
      given_ = params.noise + row * params.noise_stride;
    }
  }

  PYGEN_DEVICE bool philox() const { return kind_ == Rng::kPhilox; }
  // The words of tokens 4 * block to 4 * block + 3, of the philox kind.
  PYGEN_DEVICE PhiloxBlock words(int block) const {
    return philox4x32_10(static_cast<uint32_t>(block), step_, kTargetDraws, 0, seed_);
  }

  // What the noise of a token is made of.
  PYGEN_DEVICE uint32_t bits(int token) const {
    if (kind_ == Rng::kPhilox)
      return philox_word(static_cast<uint32_t>(token) >> 2, step_, kTargetDraws, 0, seed_,
                         static_cast<uint32_t>(token));
    if (kind_ == Rng::kGiven) return bits_of(given_[token]);
    return bits_of(torch_exponential_at(torch_, seed_, offset_, first_ + token));
  }
  PYGEN_DEVICE static double exponential_of_bits(Rng kind, uint32_t bits) {
    return kind == Rng::kPhilox ? exponential_of_word(bits) : float_of(bits);
  }
  // The same within a few units of float32's last place.
  PYGEN_DEVICE static float about_bits(Rng kind, uint32_t bits) {
    return kind == Rng::kPhilox ? about_word(bits) : float_of(bits);
  }
  PYGEN_DEVICE double exponential(int token) const { return exponential_of_bits(kind_, bits(token)); }
  PYGEN_DEVICE float about(int token) const { return about_bits(kind_, bits(token)); }
  // A function, for where it matters little.
  PYGEN_COLD static float value_of_bits(float score, Rng kind, uint32_t bits) {
    return pygen::cuda::value_about(score, about_bits(kind, bits));
  }
  PYGEN_DEVICE float value_about(float score, int token) const { return value_of_bits(score, kind_, bits(token)); }
  PYGEN_DEVICE static float about_word(uint32_t word) { return -log1pf(-uniform_from_word(word)); }
  // Not above ln E of a word: E >= u >= word * 2^-32, and log2(2^k (1 + f)) >= k + f, which is what the bits of a float
  // spell (Mitchell 1962).
  PYGEN_DEVICE static float log_from_below(uint32_t word) {
    constexpr float kLn2 = 0.6931471805599453f;
    const float bits = static_cast<float>(static_cast<int>(bits_of(static_cast<float>(word))));
    return fmaf(bits, kLn2 * 0x1p-23f, kLn2 * (-32.0f - 127.0f));
  }

 private:
  Rng kind_;
  uint64_t seed_ = 0, offset_ = 0;
  uint32_t step_ = 0;
  const float* given_ = nullptr;
  const TorchCudaNoise* torch_ = nullptr;
  int64_t first_ = 0;  // element of token 0 in torch's tensor
};

// The same by functions, which read the parameters anew: for callers that are to be small.
template <typename Params>
class CalledNoise {
 public:
  PYGEN_DEVICE CalledNoise(const Params& params, int64_t row) : params_(params), row_(row) {}
  PYGEN_DEVICE float value_about(float score, int token) const { return value_about(params_, row_, score, token); }
  PYGEN_DEVICE double exponential(int token) const {
    return RowNoise::exponential_of_bits(params_.rng, bits(params_, row_, token));
  }

 private:
  PYGEN_COLD static uint32_t bits(const Params& params, int64_t row, int token) {
    return RowNoise(params, row, step_of(params, row)).bits(token);
  }
  PYGEN_COLD static float value_about(const Params& params, int64_t row, float score, int token) {
    return RowNoise::value_of_bits(score, params.rng, bits(params, row, token));
  }

  const Params& params_;
  int64_t row_;
};

}  // namespace cuda
}  // namespace pygen
