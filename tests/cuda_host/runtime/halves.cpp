// Numbers of 16 bits, two in a word.
#include "cuda_host/device.h"

namespace pygen::cuda {
namespace {

template <typename ToFloat>
uint32_t larger_place_by_place(uint32_t a, uint32_t b, const ToFloat& to_float) {
  uint32_t larger = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto one = static_cast<uint16_t>(a >> shift), other = static_cast<uint16_t>(b >> shift);
    const float x = to_float(one), y = to_float(other);
    const uint16_t chosen = x != x ? one : y != y || y > x ? other : one;
    larger |= static_cast<uint32_t>(chosen) << shift;
  }
  return larger;
}

}  // namespace

uint32_t max_or_nan_of_halves(uint32_t a, uint32_t b) { return larger_place_by_place(a, b, host::half_to_float); }

uint32_t max_or_nan_of_bfloats(uint32_t a, uint32_t b) {
  return larger_place_by_place(a, b,
                               [](uint16_t bits) { return host::same_bits<float>(static_cast<uint32_t>(bits) << 16); });
}

}  // namespace pygen::cuda
