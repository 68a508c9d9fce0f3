// Doubles as integers of the same order, as common/ordered_key.h does it for floats.
#pragma once

#include "common/ordered_key.h"
#include "cuda/device.cuh"

namespace pygen {

// Ascends with the value; both zeros have one key. Only a NaN has the key 0.
PYGEN_DEVICE uint64_t ordered_key(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));
  return (bits >> 63) != 0 ? ~bits : bits | 0x8000000000000000u;
}
PYGEN_DEVICE double value_of_key(uint64_t key) {
  const uint64_t bits = (key >> 63) != 0 ? key & 0x7FFFFFFFFFFFFFFFu : ~key;
  return __longlong_as_double(static_cast<long long>(bits));
}

}  // namespace pygen
