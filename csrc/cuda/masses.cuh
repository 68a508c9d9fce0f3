// The masses of scores as integers: their sums are exact, in whatever order the threads add them.
#pragma once

#include <cmath>

#include "common/exp.h"
#include "common/filters.h"
#include "cuda/device.cuh"

namespace pygen::cuda {

// Units of a mass e^(score - largest score): 2^20 tokens add up to at most 2^63.
constexpr float kMassUnits = 0x1p43f;

// `energy`: (largest - score) e^(score - largest), in the same units.
PYGEN_DEVICE uint64_t energy_or_mass_of(float score, float largest, bool energy) {
  const float factor = energy ? fminf(largest - score, 88.0f) : 1.0f;
  return static_cast<uint64_t>(exp_nonpositive(score - largest) * factor * kMassUnits);
}
PYGEN_DEVICE uint64_t mass_of(float score, float largest) { return energy_or_mass_of(score, largest, false); }
PYGEN_DEVICE uint64_t energy_of(float score, float largest) { return energy_or_mass_of(score, largest, true); }
PYGEN_DEVICE Distribution distribution_of(uint64_t mass, uint64_t energy) {
  const double total = static_cast<double>(mass);
  return {total / kMassUnits, ln(total / kMassUnits) + static_cast<double>(energy) / total};
}
// How far a score is below the largest, as a share of `range`, and its square, in the same units.
PYGEN_DEVICE uint64_t depth_of(float score, float largest, double range) {
  return static_cast<uint64_t>((static_cast<double>(largest) - score) / range * kMassUnits + 0.5);
}
PYGEN_DEVICE uint64_t squared_depth_of(float score, float largest, double range) {
  const double depth = (static_cast<double>(largest) - score) / range;
  return static_cast<uint64_t>(depth * depth * kMassUnits + 0.5);
}
// The standard deviation of `count` scores from the sums of both.
PYGEN_DEVICE double standard_deviation_of(uint64_t count, uint64_t depth, uint64_t squared, double range) {
  const double units = static_cast<double>(count) * kMassUnits;
  const double mean = static_cast<double>(depth) / units;
  return sqrt(fmax(static_cast<double>(squared) / units - mean * mean, 0.0)) * range;
}
// What has to be kept to reach a share of a mass.
PYGEN_DEVICE uint64_t share_of(double share, double mass) { return static_cast<uint64_t>(ceil(share * mass)); }

}  // namespace pygen::cuda
