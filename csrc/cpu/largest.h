// Bounds of the largest scores of a row, from the maxima of its blocks.
#pragma once

#include "cpu/row_scores.h"

namespace pygen::cpu::PYGEN_ISA {

inline int64_t blocks_at_least(const RowScores& row, float threshold) {
  const float* maxima = row.block_max();
  const F32 t = broadcast(threshold);
  int64_t count = 0, b = 0;
  for (; b + kLanes <= row.blocks(); b += kLanes) count += __builtin_popcount(ge(load(maxima + b), t));
  for (; b < row.blocks(); ++b) count += maxima[b] >= threshold;
  return count;
}

// 24 halvings reach the resolution of a float's 24 bits.
constexpr int kBisections = 24;

// A score that at least `bound` scores reach, and rarely many more: bisection over the maxima of the blocks. It stops
// at a quarter more than asked, as a closer bound saves fewer scores than the steps cost.
inline float lower_bound_of_largest(const RowScores& row, int64_t bound) {
  const float* maxima = row.block_max();
  float low = -kInf, high = row.max_score();
  if (blocks_at_least(row, high) >= bound) return high;
  for (int64_t b = 0; b < row.blocks(); ++b) low = b == 0 || maxima[b] < low ? maxima[b] : low;
  for (int iteration = 0; iteration < kBisections && low > -kInf; ++iteration) {
    const float middle = low + (high - low) * 0.5f;
    if (!(middle > low && middle < high)) break;
    const int64_t count = blocks_at_least(row, middle);
    (count >= bound ? low : high) = middle;
    if (count >= bound && count <= bound + bound / 4) break;
  }
  return low;
}

}  // namespace pygen::cpu::PYGEN_ISA
