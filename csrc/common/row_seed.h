// The seeds of rows, as pygen/rng.py defines them.
#pragma once

#include <cstdint>

namespace pygen {

// Output number row + 1 of SplitMix64 (Steele, Lea, Flood 2014) started at the seed of a call.
inline uint64_t row_seed(uint64_t seed, int64_t row) {
  uint64_t word = seed + (static_cast<uint64_t>(row) + 1) * 0x9E3779B97F4A7C15u;
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
  return word ^ (word >> 31);
}

}  // namespace pygen
