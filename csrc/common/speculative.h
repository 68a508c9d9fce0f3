// The rule of speculative sampling (Leviathan et al. 2023; Chen et al. 2023), on logarithms p and q of probabilities:
// -inf is a probability of 0.
#pragma once

#include <cmath>

#include "common/draft_params.h"
#include "common/philox.h"

namespace pygen {

constexpr double kNoWeight = -__builtin_huge_val();

PYGEN_HOST_DEVICE uint32_t draft_step(const DraftParams& params, int64_t row, int64_t position) {
  return static_cast<uint32_t>(knob_at(params.step, row) + position);
}

// u of a draft.
PYGEN_HOST_DEVICE float acceptance_uniform(const DraftParams& params, int64_t row, int64_t position, uint32_t draft) {
  if (params.rng == Rng::kGiven) return params.uniforms[row * params.num_drafts + position];
  const uint64_t seed = static_cast<uint64_t>(params.seeds[row]);
  return uniform_from_word(noise_word(seed, draft_step(params, row, position), kAcceptance, draft));
}

PYGEN_HOST_DEVICE bool draft_stays(double p, double q, float uniform) { return p != kNoWeight && uniform < exp(p - q); }

// ln of the share of a token's probability that max(p - q, 0) is: ln(p - q) = ln p + ln(1 - q / p).
PYGEN_HOST_DEVICE double log_residual_share(double p, double q) { return q < p ? log1p(-exp(q - p)) : kNoWeight; }

}  // namespace pygen
