// The masses of scores as integers: their sums are exact, in whatever order the threads add them.
#pragma once

#include <cmath>

#include "common/exp.h"
#include "common/filters.h"
#include "cuda/device.cuh"

namespace pygen::cuda {

// Units of a mass e^(score - largest score): 2^20 tokens add up to at most 2^63.
constexpr float kMassUnits = 0x1p43f;

PYGEN_DEVICE uint64_t mass_of(float score, float largest) {
  return static_cast<uint64_t>(exp_nonpositive(score - largest) * kMassUnits);
}
// (largest - score) e^(score - largest), in the same units.
PYGEN_DEVICE uint64_t energy_of(float score, float largest) {
  const float below = fminf(largest - score, 88.0f);
  return static_cast<uint64_t>(exp_nonpositive(score - largest) * below * kMassUnits);
}
PYGEN_DEVICE Distribution distribution_of(uint64_t mass, uint64_t energy) {
  const double total = static_cast<double>(mass);
  return {total / kMassUnits, log(total / kMassUnits) + static_cast<double>(energy) / total};
}
// What has to be kept to reach a share of a mass.
PYGEN_DEVICE uint64_t share_of(double share, double mass) { return static_cast<uint64_t>(ceil(share * mass)); }

}  // namespace pygen::cuda
