// MT19937 (Matsumoto and Nishimura 1998) as torch's CPU generators run it, so that a draw can use torch's very noise.
//
// torch's `exponential_` takes two words an element, the first the high one. Words of tokens that no filter left are
// stepped over without being tempered.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

constexpr int kTwisterWords = 624;
constexpr int kTwisterShift = 397;

PYGEN_INLINE uint32_t temper(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9D2C5680u;
  y ^= (y << 15) & 0xEFC60000u;
  return y ^ (y >> 18);
}

PYGEN_INLINE U32 temper(U32 y) {
  y = y ^ (y >> 11);
  y = y ^ ((y << 7) & broadcast(0x9D2C5680u));
  y = y ^ ((y << 15) & broadcast(0xEFC60000u));
  return y ^ (y >> 18);
}

// torch's E of one token from its two tempered words: -log1p(-u) in double, then float32 as the tensor is.
PYGEN_INLINE float torch_exponential(uint32_t high, uint32_t low) {
  const uint64_t bits = ((static_cast<uint64_t>(high) << 32) | low) & ((uint64_t{1} << 53) - 1);
  return static_cast<float>(-std::log1p(-(static_cast<double>(bits) * 0x1p-53)));
}

class MersenneTwister {
 public:
  // Byte layout of torch.Generator.get_state(): seed u64, words left i32, seeded i32, next u64, 624 words as u64,
  // normal_'s.
  void read_torch_state(const uint8_t* state) {
    uint64_t next, word;
    std::memcpy(&next, state + 16, 8);
    position_ = static_cast<int>(next);
    for (int i = 0; i < kTwisterWords; ++i) {
      std::memcpy(&word, state + 24 + 8 * i, 8);
      words_[i] = static_cast<uint32_t>(word);
    }
    // A fresh seed: torch says "one left" although all words are used up.
    int32_t left;
    std::memcpy(&left, state + 8, 4);
    if (left == 1) position_ = kTwisterWords;
  }

  void write_torch_state(uint8_t* state) const {
    const uint64_t next = static_cast<uint64_t>(position_);
    const int32_t left = kTwisterWords + 1 - position_;
    std::memcpy(state + 8, &left, 4);
    std::memcpy(state + 16, &next, 8);
    for (int i = 0; i < kTwisterWords; ++i) {
      const uint64_t word = words_[i];
      std::memcpy(state + 24 + 8 * i, &word, 8);
    }
  }

  // Steps over `count` words.
  void skip(int64_t count) {
    int64_t target = position_ + count;
    for (; target > kTwisterWords; target -= kTwisterWords) twist();
    position_ = static_cast<int>(target);
  }

  // The next `count` words, not tempered.
  void take(uint32_t* out, int64_t count) {
    while (count > 0) {
      if (position_ == kTwisterWords) {
        twist();
        position_ = 0;
      }
      const int64_t chunk = count < kTwisterWords - position_ ? count : kTwisterWords - position_;
      std::memcpy(out, words_ + position_, static_cast<size_t>(chunk) * 4);
      position_ += static_cast<int>(chunk);
      out += chunk;
      count -= chunk;
    }
  }

 private:
  PYGEN_INLINE static uint32_t mixed(uint32_t current, uint32_t next) {
    const uint32_t y = (current & 0x80000000u) | (next & 0x7FFFFFFFu);
    return (y >> 1) ^ ((0u - (next & 1u)) & 0x9908B0DFu);
  }
  PYGEN_INLINE static U32 mixed(const U32& current, const U32& next) {
    const U32 y = (current & broadcast(0x80000000u)) | (next & broadcast(0x7FFFFFFFu));
    return (y >> 1) ^ ((broadcast(0u) - (next & broadcast(1u))) & broadcast(0x9908B0DFu));
  }

  // In place: word i needs words i + 1 and i + 397 of before, or i - 227 of after, and 227 is more than a vector.
  void twist() {
    constexpr int kOld = kTwisterWords - kTwisterShift;
    int i = 0;
    for (; i + kLanes <= kOld; i += kLanes)
      store(words_ + i, load(words_ + i + kTwisterShift) ^ mixed(load(words_ + i), load(words_ + i + 1)));
    for (; i < kOld; ++i) words_[i] = words_[i + kTwisterShift] ^ mixed(words_[i], words_[i + 1]);
    for (; i + kLanes < kTwisterWords; i += kLanes)
      store(words_ + i, load(words_ + i - kOld) ^ mixed(load(words_ + i), load(words_ + i + 1)));
    for (; i < kTwisterWords - 1; ++i) words_[i] = words_[i - kOld] ^ mixed(words_[i], words_[i + 1]);
    words_[i] = words_[i - kOld] ^ mixed(words_[i], words_[0]);
  }

  uint32_t words_[kTwisterWords];
  int position_ = kTwisterWords;
};

}  // namespace pygen::cpu::PYGEN_ISA
