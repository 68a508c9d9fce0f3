// The three kinds of noise of the exponential race. Each offers
//   exponential(token_id)        E of one token, exactly; ids must ascend for the torch kind
//   prepare(token_id)            turns to the 64 tokens from token_id on; a number not above any of their ln E
//   log_bounds(out)              for those 64: numbers not above their ln E, for a little arithmetic
//   may_reach(token_id, margin)  false where ln E is certainly above `margin`
//   kSequential                  whether tokens must be visited in order
// so that the race computes logarithms only for tokens that can still win.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/philox.h"
#include "cpu/mersenne_twister.h"
#include "cpu/row_scores.h"
#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

constexpr float kLn2 = 0.6931471805599453f;

// ln of a positive float from below: log2(2^k (1 + f)) >= k + f, and k + f is what the bits spell (Mitchell 1962).
// `exponent` is added to the binary logarithm.
PYGEN_INLINE F32 log_from_below(const F32& x, float exponent) {
  const F32 bits = to_float(bit_cast<int32_t>(x));
  return fma(bits, broadcast(kLn2 * 0x1p-23f), broadcast(kLn2 * (exponent - 127.0f)));
}

PYGEN_INLINE float log_from_below(float x, float exponent) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<float>(bits) * (kLn2 * 0x1p-23f) + kLn2 * (exponent - 127.0f);
}

// The same where `x` may be zero or subnormal and its bits promise nothing: far below everything there.
PYGEN_INLINE F32 log_from_below_or_nothing(const F32& x, float exponent) {
  const F32 tiny = where_gt(broadcast(std::numeric_limits<float>::min()), x, broadcast(1e30f));
  return log_from_below(x, exponent) - tiny;
}

class PhiloxNoise {
 public:
  static constexpr bool kSequential = false;

  PhiloxNoise(uint64_t row_seed, uint32_t step) : row_seed_(row_seed), step_(step) {
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
      key0_[round] = static_cast<uint32_t>(row_seed) + round * kPhiloxWeyl0;
      key1_[round] = static_cast<uint32_t>(row_seed >> 32) + round * kPhiloxWeyl1;
    }
  }

  uint32_t word(int64_t token_id) const {
    return noise_word(row_seed_, step_, kTargetDraws, static_cast<uint32_t>(token_id));
  }

  double exponential(int64_t token_id) const {
    return -std::log1p(-static_cast<double>(uniform_from_word(word(token_id))));
  }

  // E >= u, and u >= word * 2^-32.
  bool may_reach(int64_t token_id, float margin) const {
    return static_cast<double>(word(token_id)) * 0x1p-32 <= std::exp(static_cast<double>(margin));
  }

  PYGEN_INLINE float prepare(int64_t token_id) {
    // Lane 4 j + g computes the block of tokens 4 (4 g + j)..+3, so that the transpose below leaves the tokens in
    // order.
    static const uint32_t kOrder[kLanes] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    U32 c0 = load(kOrder) + broadcast(static_cast<uint32_t>(token_id >> 2));
    U32 c1 = broadcast(step_), c2 = broadcast(static_cast<uint32_t>(kTargetDraws)), c3 = broadcast(0u);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      U32 high0, low0, high1, low1;
      multiply_wide(c0, kPhiloxMultiplier0, high0, low0);
      multiply_wide(c2, kPhiloxMultiplier1, high1, low1);
      c0 = high1 ^ c1 ^ broadcast(key0_[round]);
      c2 = high0 ^ c3 ^ broadcast(key1_[round]);
      c1 = low1;
      c3 = low0;
    }
    block_[0] = c0;
    block_[1] = c1;
    block_[2] = c2;
    block_[3] = c3;
    const uint32_t smallest = reduce_min(min(min(c0, c1), min(c2, c3)));
    return log_from_below(static_cast<float>(smallest), -32.0f);
  }

  // E = -log1p(-u) >= u >= word * 2^-32.
  PYGEN_INLINE void log_bounds(F32 out[4]) const {
    U32 words[4];
    transpose_groups(block_[0], block_[1], block_[2], block_[3], words);
    // Signed conversion needs the top bit clear: half the word, and one binary order less.
    for (int i = 0; i < 4; ++i) out[i] = log_from_below(to_float(bit_cast<int32_t>(words[i] >> 1)), -31.0f);
  }

 private:
  uint64_t row_seed_;
  uint32_t step_;
  uint32_t key0_[kPhiloxRounds], key1_[kPhiloxRounds];
  U32 block_[4];
};

class TorchNoise {
 public:
  static constexpr bool kSequential = true;

  // The twister's next word is the row's first.
  explicit TorchNoise(MersenneTwister& twister) : twister_(twister) {}

  // A bound would cost nearly as much as the logarithm.
  bool may_reach(int64_t, float) const { return true; }

  double exponential(int64_t token_id) {
    if (token_id >= begin_ && token_id < begin_ + kBlock) {
      const uint32_t* words = words_ + 2 * (token_id - begin_);
      return torch_exponential(temper(words[0]), temper(words[1]));
    }
    uint32_t words[2];
    twister_.skip(2 * (token_id - reached_));
    twister_.take(words, 2);
    reached_ = token_id + 1;
    return torch_exponential(temper(words[0]), temper(words[1]));
  }

  PYGEN_INLINE float prepare(int64_t token_id) {
    twister_.skip(2 * (token_id - reached_));
    twister_.take(words_, 2 * kBlock);
    begin_ = token_id;
    reached_ = token_id + kBlock;
    for (int i = 0; i < 4; ++i) {
      const U32 high = temper(even_lanes(load(words_ + 32 * i), load(words_ + 32 * i + kLanes)));
      high21_[i] = high & broadcast(0x1FFFFFu);
    }
    const uint32_t smallest = reduce_min(min(min(high21_[0], high21_[1]), min(high21_[2], high21_[3])));
    return smallest == 0 ? -1e30f : log_from_below(static_cast<float>(smallest), -21.0f);
  }

  // u >= (low 21 bits of the high word) * 2^-21.
  PYGEN_INLINE void log_bounds(F32 out[4]) const {
    for (int i = 0; i < 4; ++i) out[i] = log_from_below_or_nothing(to_float(bit_cast<int32_t>(high21_[i])), -21.0f);
  }

 private:
  MersenneTwister& twister_;
  int64_t reached_ = 0;      // the next token of the twister
  int64_t begin_ = -kBlock;  // the first token of words_
  uint32_t words_[2 * kBlock];
  U32 high21_[4];
};

struct GivenNoise {
  static constexpr bool kSequential = false;
  const float* noise;  // (vocab_size,)
  int64_t vocab_size;
  int64_t begin = 0;

  double exponential(int64_t token_id) const { return noise[token_id]; }
  bool may_reach(int64_t, float) const { return true; }

  // Looking for the least would cost as much as the bounds themselves.
  float prepare(int64_t token_id) {
    begin = token_id;
    return -1e30f;
  }

  PYGEN_INLINE void log_bounds(F32 out[4]) const {
    float buffer[kBlock];
    const float* from = noise + begin;
    if (begin + kBlock > vocab_size) {
      for (int64_t i = 0; i < kBlock; ++i) buffer[i] = begin + i < vocab_size ? noise[begin + i] : 1.0f;
      from = buffer;
    }
    for (int i = 0; i < 4; ++i) out[i] = log_from_below_or_nothing(load(from + i * kLanes), 0.0f);
  }
};

// Calls race(noise) with the noise of a row: of SampleParams or BeamParams. The next word of `twister` is
// the row's first; it is null unless the noise is torch's.
template <typename Params, typename Race>
auto with_noise(const Params& params, int64_t row, int64_t step, MersenneTwister* twister, const Race& race) {
  switch (params.rng) {
    case Rng::kTorch: return race(TorchNoise(*twister));
    case Rng::kGiven: return race(GivenNoise{params.noise + row * params.noise_stride, params.shaping.vocab_size});
    default: break;
  }
  return race(PhiloxNoise(static_cast<uint64_t>(params.seeds[row]), static_cast<uint32_t>(step)));
}

// Calls body(row, twister) for every row. Rows draw from one generator in turn: each gets a copy whose next word is the
// row's first. Advances the state behind `generator_state`.
template <typename Body>
void rows_with_torch_noise(uint8_t* generator_state, const ShapingParams& shaping, int threads, const Body& body) {
  // Enough rows to share, but no more copies (2.5 KB each) than that takes.
  const int64_t rows_at_once = std::min<int64_t>(2048, 64 + kScoresPerThread * 64 / shaping.vocab_size);
  MersenneTwister twister;
  twister.read_torch_state(generator_state);
  Buffer<MersenneTwister> of_row;
  of_row.reserve(std::min(rows_at_once, shaping.rows));
  for (int64_t first = 0; first < shaping.rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, shaping.rows - first);
    for (int64_t i = 0; i < count; ++i) {
      of_row[i] = twister;
      twister.skip(2 * shaping.vocab_size);
    }
    parallel_rows(count, threads, [&](int64_t i) { body(first + i, &of_row[i]); });
  }
  twister.write_torch_state(generator_state);
}

}  // namespace pygen::cpu::PYGEN_ISA
