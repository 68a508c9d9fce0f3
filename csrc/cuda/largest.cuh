// A bound of the n largest scores of a row, from the maxima of its tiles.
#pragma once

#include "cuda/row_scores.cuh"

namespace pygen::cuda {

// Up to here one maximum per thread is fine enough: of 512, at most a quarter reach the bound.
constexpr int kFewWanted = kThreads / 4;

// A number that at least `wanted` of the values reach, and rarely many more; -inf where there are fewer. All threads of
// the block that holds the values; bisection over their keys. `smem` as in block_reduce.
PYGEN_DEVICE float bound_of_largest(Shared<float> values, int count, int wanted, Shared<uint64_t> smem) {
  if (wanted > count) return -kInfinity;
  float max_score = -kInfinity;
  for (int i = thread_index(); i < count; i += kThreads) max_score = fmaxf(max_score, values.get(i));
  const bool coarse = wanted <= kFewWanted && wanted <= count / 2;
  const uint32_t own = ordered_key(max_score);
  const bool has_own = thread_index() < count;
  uint32_t high = static_cast<uint32_t>(block_reduce(static_cast<uint64_t>(own), Larger{}, smem)) + 1;
  uint32_t low = static_cast<uint32_t>(block_reduce(static_cast<uint64_t>(coarse && has_own ? own
                                                                          : coarse          ? 0xFFFFFFFFu
                                                                                            : 0u),
                                                    Smaller{}, smem));
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    int reaching;
    if (coarse) {
      reaching = block_count(has_own && own >= middle, smem);
    } else {
      uint64_t of_thread = 0;
      if (own >= middle)
        for (int i = thread_index(); i < count; i += kThreads) of_thread += ordered_key(values.get(i)) >= middle;
      reaching = static_cast<int>(block_reduce(of_thread, Add{}, smem));
    }
    if (reaching >= wanted) {
      low = middle;
      if (reaching <= wanted + wanted / 8) break;
    } else {
      high = middle;
    }
  }
  return low <= ordered_key(-kInfinity) ? -kInfinity : value_of_key(low);
}

}  // namespace pygen::cuda
