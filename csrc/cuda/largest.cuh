// A bound of the n largest scores of a row, from the maxima of its tiles.
#pragma once

#include "cuda/row_team.cuh"

namespace pygen::cuda {

// Up to here one maximum per thread is fine enough: of 512, at most a quarter reach the bound.
constexpr int kFewWanted = kThreads / 4;

// The larger of both halves.
struct BothLarger {
  PYGEN_DEVICE static uint64_t neutral() { return 0; }
  PYGEN_DEVICE uint64_t operator()(uint64_t a, uint64_t b) const {
    return (a > b ? a : b) >> 32 << 32 | max(static_cast<uint32_t>(a), static_cast<uint32_t>(b));
  }
  PYGEN_DEVICE static uint64_t of_warp(uint64_t value) {
    const uint32_t high = Larger::of_warp(static_cast<uint32_t>(value >> 32));
    return static_cast<uint64_t>(high) << 32 | Larger::of_warp(static_cast<uint32_t>(value));
  }
};

// A number that at least `wanted` of value(0) to value(count - 1) reach, and rarely many more; -inf where there are
// fewer. All threads of the block that has the values. Counts of 256 ranges of keys, then of 256 parts of one of them,
// until few of those that are not wanted reach the bound.
template <typename Value>
PYGEN_DEVICE float bound_of_largest(const Value& value, int count, int wanted, const RowSmem& smem) {
  constexpr int kBins = 256, kBinsPerLane = kBins / kWarp;
  if (wanted > count) return -kInfinity;
  float max_score = -kInfinity;
#pragma unroll 1
  for (int i = thread_index(); i < count; i += kThreads) max_score = fmaxf(max_score, value(i));
  const bool coarse = wanted <= kFewWanted && wanted <= count / 2;
  const uint32_t own = ordered_key(max_score);
  const bool has_own = thread_index() < count;
  // The range of all keys that matter: from the lowest of the threads' maxima, where a thread is asked for one.
  const uint32_t lowest = !coarse ? ordered_key(-kInfinity) : has_own ? own : 0xFFFFFFFFu;
  const uint64_t range =
      block_reduce(static_cast<uint64_t>(own) << 32 | static_cast<uint32_t>(~lowest), BothLarger{}, smem.reduce);
  uint32_t low = ~static_cast<uint32_t>(range);
  uint32_t span = static_cast<uint32_t>(range >> 32) - low;  // keys of the range are low to low + span
  uint32_t above = 0;                                        // values beyond it
  const Shared<uint32_t> bins = smem.sums.low;
  for (;;) {
    const int shift = max(0, 32 - __clz(static_cast<int>(span)) - 8);
    __syncthreads();
    if (thread_index() < kBins) bins.set(thread_index(), 0);
    __syncthreads();
    const auto count_key = [&](uint32_t key) {
      if (key >= low && key - low <= span) bins.add(static_cast<int>((key - low) >> shift), 1);
    };
    if (coarse) {
      if (has_own) count_key(own);
    } else if (own >= low) {
#pragma unroll 1
      for (int i = thread_index(); i < count; i += kThreads) count_key(ordered_key(value(i)));
    }
    __syncthreads();
    if (thread_index() < kWarp) {
      uint32_t of_lane = 0;
      const int last = kBins - 1 - thread_index() * kBinsPerLane;
#pragma unroll
      for (int i = 0; i < kBinsPerLane; ++i) of_lane += bins.get(last - i);
      uint32_t before = of_lane;
#pragma unroll 1
      for (int distance = 1; distance < kWarp; distance <<= 1) {
        const uint32_t other = __shfl_up_sync(kAllLanes, before, distance);
        if (lane_index() >= distance) before += other;
      }
      before += above - of_lane;
      const auto needed = static_cast<uint32_t>(wanted);
      if (before < needed && before + of_lane >= needed) {
        int bin = last;
        while (before + bins.get(bin) < needed) before += bins.get(bin--);
        smem.reduce.set(0, static_cast<uint64_t>(before) << 32 | static_cast<uint32_t>(bin));
        smem.reduce.set(1, before + bins.get(bin));
      }
    }
    __syncthreads();
    const uint64_t found = smem.reduce.get(0);
    const auto reaching = static_cast<int>(smem.reduce.get(1));
    above = static_cast<uint32_t>(found >> 32);
    low += static_cast<uint32_t>(found) << shift;
    span = (1u << shift) - 1;
    if (shift == 0 || reaching <= wanted + wanted / 8) break;
  }
  __syncthreads();
  return low <= ordered_key(-kInfinity) ? -kInfinity : value_of_key(low);
}

}  // namespace pygen::cuda
