// Floats as integers of the same order, for selections by digits.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace pygen {

PYGEN_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

PYGEN_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Ascends with the value; both zeros have one key. The key of NaN is unspecified.
PYGEN_HOST_DEVICE uint32_t ordered_key(float value) {
  const uint32_t bits = bits_of(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

PYGEN_HOST_DEVICE float value_of_key(uint32_t key) {
  return float_of((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

}  // namespace pygen
