// Entries of a list of scores, which one 64-bit comparison orders.
#pragma once

#include "common/ordered_key.h"
#include "cuda/device.cuh"

namespace pygen::cuda {

// Scores that a list can hold.
constexpr int kListCapacity = 2048;

// A score and its token in one word: a larger word is a larger score, or an equal one of a lower id.
PYGEN_DEVICE uint64_t list_entry(float score, int token) {
  return static_cast<uint64_t>(ordered_key(score)) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(token));
}
PYGEN_DEVICE float score_of_entry(uint64_t entry) { return value_of_key(static_cast<uint32_t>(entry >> 32)); }
PYGEN_DEVICE int token_of_entry(uint64_t entry) { return static_cast<int>(0xFFFFFFFFu - static_cast<uint32_t>(entry)); }

}  // namespace pygen::cuda
