// Reductions and scans of a warp and of a block. All threads call them and all get the result.
#pragma once

#include "common/ordered_key.h"
#include "cuda/cold.cuh"
#include "cuda/device.cuh"

namespace pygen::cuda {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

PYGEN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
PYGEN_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarp); }
PYGEN_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarp); }

// What a reduction does: two values to one, or those of a warp's lanes. Sums and maxima of 32 bits are one instruction.
struct Add {
  PYGEN_DEVICE static uint64_t neutral() { return 0; }
  template <typename T>
  PYGEN_DEVICE T operator()(const T& a, const T& b) const {
    return a + b;
  }
  PYGEN_DEVICE static uint64_t of_warp(uint64_t value) {
    constexpr int kBits = 27;  // 32 numbers of so many bits have a sum of 32
    constexpr uint32_t kMask = (1u << kBits) - 1;
    const uint64_t low = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(value) & kMask);
    const uint64_t middle = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(value >> kBits) & kMask);
    const uint64_t high = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(value >> 2 * kBits));
    return low + (middle << kBits) + (high << 2 * kBits);
  }
};
struct Larger {
  PYGEN_DEVICE static uint64_t neutral() { return 0; }
  template <typename T>
  PYGEN_DEVICE T operator()(const T& a, const T& b) const {
    return b > a ? b : a;
  }
  PYGEN_DEVICE static uint32_t of_warp(uint32_t value) { return __reduce_max_sync(kAllLanes, value); }
  PYGEN_DEVICE static uint64_t of_warp(uint64_t value) {
    const uint32_t high = of_warp(static_cast<uint32_t>(value >> 32));
    const uint32_t low = value >> 32 == high ? static_cast<uint32_t>(value) : 0u;
    return static_cast<uint64_t>(high) << 32 | of_warp(low);
  }
};
struct Smaller {
  PYGEN_DEVICE static uint64_t neutral() { return ~uint64_t{0}; }
  template <typename T>
  PYGEN_DEVICE T operator()(const T& a, const T& b) const {
    return b < a ? b : a;
  }
  PYGEN_DEVICE static uint64_t of_warp(uint64_t value) { return ~Larger::of_warp(~value); }
};

// Structures that are reduced overload it.
template <typename T>
PYGEN_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

// Over groups of `lanes` neighbours, a power of two.
template <typename T, typename Op>
PYGEN_DEVICE T warp_reduce(T value, const Op& op, int lanes = kWarp) {
  for (int mask = 1; mask < lanes; mask <<= 1) value = op(value, shuffle_xor(value, mask));
  return value;
}

// `smem`: kWarps elements, for this alone.
template <typename T, typename Op>
PYGEN_DEVICE T block_reduce(T value, const Op&, Shared<T> smem) {
  // In two turns, over a warp's lanes and over the warps.
#pragma unroll 1
  for (bool of_warps = false;; of_warps = true) {
    value = Op::of_warp(value);
    if (of_warps) return value;
    __syncthreads();
    if (lane_index() == 0) smem.set(warp_index(), value);
    __syncthreads();
    value = lane_index() < kWarps ? smem.get(lane_index()) : static_cast<T>(Op::neutral());
  }
}

template <typename Op>
PYGEN_COLD uint64_t block_reduce_words(uint64_t value, Shared<uint64_t> smem) {
  return block_reduce<uint64_t, Op>(value, Op{}, smem);
}
template <typename Op>
PYGEN_DEVICE uint64_t block_reduce(uint64_t value, const Op&, Shared<uint64_t> smem) {
  return block_reduce_words<Op>(value, smem);
}

// The sum over this thread and those before it, and the block's.
struct RunningSum {
  uint64_t here, all;
};

// `smem`: kWarps elements.
PYGEN_COLD RunningSum block_inclusive_sum(uint64_t value, Shared<uint64_t> smem) {
#pragma unroll 1
  for (int distance = 1; distance < kWarp; distance <<= 1) {
    const uint64_t before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_index() >= distance) value += before;
  }
  __syncthreads();
  if (lane_index() == kWarp - 1) smem.set(warp_index(), value);
  __syncthreads();
  const uint64_t of_warp = lane_index() < kWarps ? smem.get(lane_index()) : 0;
  const uint64_t before = Add::of_warp(lane_index() < warp_index() ? of_warp : uint64_t{0});
  return {value + before, Add::of_warp(of_warp)};
}

// How many threads say yes. `smem` as above.
PYGEN_DEVICE int block_count(bool yes, Shared<uint64_t> smem) {
  const unsigned votes = __ballot_sync(kAllLanes, yes);
  __syncthreads();
  if (lane_index() == 0) smem.set(warp_index(), static_cast<uint64_t>(__popc(votes)));
  __syncthreads();
  const uint64_t of_warp = lane_index() < kWarps ? smem.get(lane_index()) : 0;
  return static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<uint32_t>(of_warp)));
}

}  // namespace pygen::cuda
