// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) and pygen's noise made from it: one source for every backend.
//
// The word of a token is output word `token_id & 3` of the block at counter (token_id >> 2, step, stream, 0) under the
// row's 64-bit seed as key. Nothing else enters, so a draw depends neither on the batch nor on how the work was split.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace pygen {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Streams of one row. Seeded results depend on the numbers: 1 stays reserved for the draws of a draft model.
enum NoiseStream : uint32_t { kTargetDraws = 0, kAcceptance = 2 };

struct PhiloxBlock {
  uint32_t word[4];
};

// Selects, because an index that is known only at run time would put the words into the stack of a GPU's thread.
PYGEN_HOST_DEVICE uint32_t word_of(const PhiloxBlock& block, uint32_t index) {
  const uint32_t first = (index & 1) != 0 ? block.word[1] : block.word[0];
  const uint32_t second = (index & 1) != 0 ? block.word[3] : block.word[2];
  return (index & 2) != 0 ? second : first;
}

PYGEN_HOST_DEVICE PhiloxBlock philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// Word index % 4 of a block.
PYGEN_HOST_DEVICE_COLD uint32_t philox_word(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key,
                                            uint32_t index) {
  return word_of(philox4x32_10(c0, c1, c2, c3, key), index);
}

PYGEN_HOST_DEVICE uint32_t noise_word(uint64_t row_seed, uint32_t step, uint32_t stream, uint32_t token_id) {
  return word_of(philox4x32_10(token_id >> 2, step, stream, 0, row_seed), token_id & 3);
}

// u = float32((word + 1/2) * 2^-32), at most 1 - 2^-24 so that log1p(-u) stays finite.
PYGEN_HOST_DEVICE float uniform_from_word(uint32_t word) {
  const float u = static_cast<float>((static_cast<double>(word) + 0.5) * 0x1p-32);
  return u < 1.0f ? u : 0x1.fffffep-1f;
}

}  // namespace pygen
