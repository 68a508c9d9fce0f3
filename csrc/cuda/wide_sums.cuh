// 64-bit sums in shared memory.
#pragma once

#include "cuda/device.cuh"

namespace pygen::cuda {

// 64-bit sums in two arrays of 32 bits, because shared memory adds those at once.
struct WideSums {
  Shared<uint32_t> low, high;

  PYGEN_DEVICE uint64_t get(int i) const { return static_cast<uint64_t>(high.get(i)) << 32 | low.get(i); }
  PYGEN_DEVICE void set(int i, uint64_t value) const {
    low.set(i, static_cast<uint32_t>(value));
    high.set(i, static_cast<uint32_t>(value >> 32));
  }
  PYGEN_DEVICE void add(int i, uint64_t value) const {
    const uint32_t addend = static_cast<uint32_t>(value);
    const uint32_t carry = low.add(i, addend) > 0xFFFFFFFFu - addend;
    const uint32_t rest = static_cast<uint32_t>(value >> 32) + carry;
    if (rest != 0) high.add(i, rest);
  }
  PYGEN_DEVICE WideSums of_block(unsigned rank) const { return {low.of_block(rank), high.of_block(rank)}; }
};

}  // namespace pygen::cuda
