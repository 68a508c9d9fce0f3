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

struct Add {
  template <typename T>
  PYGEN_DEVICE T operator()(const T& a, const T& b) const {
    return a + b;
  }
};
struct Larger {
  template <typename T>
  PYGEN_DEVICE T operator()(const T& a, const T& b) const {
    return b > a ? b : a;
  }
};
struct Smaller {
  template <typename T>
  PYGEN_DEVICE T operator()(const T& a, const T& b) const {
    return b < a ? b : a;
  }
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

// `op` is commutative and associative. `smem`: kWarps elements, for this alone.
template <typename T, typename Op>
PYGEN_DEVICE T block_reduce(T value, const Op& op, Shared<T> smem) {
  value = warp_reduce(value, op);
  __syncthreads();
  if (lane_index() == 0) smem.set(warp_index(), value);
  __syncthreads();
  return warp_reduce(smem.get(lane_index() % kWarps), op, kWarps);
}

template <typename Op>
PYGEN_COLD uint64_t block_reduce_words(uint64_t value, Shared<uint64_t> smem) {
  return block_reduce<uint64_t, Op>(value, Op{}, smem);
}
template <typename Op>
PYGEN_DEVICE uint64_t block_reduce(uint64_t value, const Op&, Shared<uint64_t> smem) {
  return block_reduce_words<Op>(value, smem);
}

// The sum over this thread and those before it; `total` is the block's. `smem`: kWarps elements.
PYGEN_DEVICE uint64_t block_inclusive_sum(uint64_t value, Shared<uint64_t> smem, uint64_t& total) {
  for (int distance = 1; distance < kWarp; distance <<= 1) {
    const uint64_t before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_index() >= distance) value += before;
  }
  __syncthreads();
  if (lane_index() == kWarp - 1) smem.set(warp_index(), value);
  __syncthreads();
  const uint64_t of_warp = smem.get(lane_index() % kWarps);
  total = warp_reduce(of_warp, Add{}, kWarps);
  return value + warp_reduce(lane_index() % kWarps < warp_index() ? of_warp : uint64_t{0}, Add{}, kWarps);
}

// How many threads say yes. `smem` as above.
PYGEN_DEVICE int block_count(bool yes, Shared<uint64_t> smem) {
  const unsigned votes = __ballot_sync(kAllLanes, yes);
  __syncthreads();
  if (lane_index() == 0) smem.set(warp_index(), static_cast<uint64_t>(__popc(votes)));
  __syncthreads();
  return static_cast<int>(warp_reduce(static_cast<uint32_t>(smem.get(lane_index() % kWarps)), Add{}, kWarps));
}

}  // namespace pygen::cuda
