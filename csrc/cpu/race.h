// The exponential race: the token with the largest score - ln E wins, ties to the lowest id, and a survivor beats none.
//
// argmax(p / E) is a draw from p (the Gumbel-max trick written with exponentials). ln E is first bounded from below
// with a few integer instructions, for 64 tokens together and then one by one; only tokens whose bound can beat the
// best so far are evaluated exactly, in double.
#pragma once

#include <cmath>

#include "common/race_bounds.h"
#include "cpu/noise.h"
#include "cpu/parallel.h"
#include "cpu/row_scores.h"
#include "cpu/survivors.h"

namespace pygen::cpu::PYGEN_ISA {

// A token whose bound is below this cannot beat `value`.
PYGEN_INLINE double bar_below(double value) {
  return value - kBoundError - kRelativeBoundError * (std::fabs(value) + kMaxLogNoise);
}

// Values below this are as good as -inf: a float cannot hold a bar below them.
constexpr double kHopeless = -1e30;

struct Winner {
  double value = -std::numeric_limits<double>::infinity();  // of score - origin - ln E
  int64_t token_id = -1;
  float score = -kInf;
  float origin = 0;  // near the largest score: a double then holds both score - origin and the noise

  PYGEN_INLINE void offer(double candidate, int64_t id, float candidate_score) {
    if (token_id >= 0 && !(candidate > value) && !(candidate == value && id < token_id)) return;
    value = candidate;
    token_id = id;
    score = candidate_score;
  }

  // Below this bound nothing wins.
  PYGEN_INLINE float bar() const {
    return token_id < 0 || value < kHopeless ? -kInf : static_cast<float>(bar_below(value + origin));
  }
};

PYGEN_INLINE double value_of(float score, float origin, double exponential) {
  return (static_cast<double>(score) - origin) - std::log(exponential);
}

// Races the tokens of blocks [begin, end) whose scores are in [low, high]. max_of(block) returns at least the block's
// largest score, get(block, buffer) its 64 scores. Scores times `scale` are scores over the temperature up to rounding;
// finish(score) is exact.
template <typename Noise, typename MaxOf, typename Get, typename Finish, typename W>
void race_blocks(int64_t begin, int64_t end, Noise& noise, const MaxOf& max_of, const Get& get, float scale,
                 const Finish& finish, float low, float high, W& winner) {
  low = std::max(low, -std::numeric_limits<float>::max());
  const F32 low_v = broadcast(low), high_v = broadcast(high), scale_v = broadcast(scale);
  float buffer[kBlock];
  float bar = winner.bar();
  for (int64_t b = begin; b < end; ++b) {
    const float largest = max_of(b);
    if (!(largest >= low)) continue;
    // A block rarely contains a possible winner: its largest score would have to meet its largest noise.
    if (largest * scale - noise.prepare(b * kBlock) < bar) continue;
    const float* scores = get(b, buffer);
    F32 log_noise[4];
    noise.log_bounds(log_noise);
    for (int i = 0; i < 4; ++i) {
      const F32 v = load(scores + i * kLanes);
      const F32 bound = v * scale_v - log_noise[i];
      float bounds[kLanes];
      store(bounds, bound);
      for (Bits bits = ge(bound, broadcast(bar)) & ge(v, low_v) & ge(high_v, v); bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        if (bounds[lane] < bar) continue;
        const int64_t token_id = b * kBlock + i * kLanes + lane;
        const float score = finish(scores[i * kLanes + lane]);
        winner.offer(value_of(score, winner.origin, noise.exponential(token_id)), token_id, score);
        bar = winner.bar();
      }
    }
  }
}

constexpr int kMaxRaceParts = 64;

// Runs race(begin, end, noise, winner, part) on parts of the blocks and returns the best of their winners.
template <typename Noise, typename Race>
Winner race_in_parts(int64_t blocks, const Noise& noise, int threads, float origin, const Race& race) {
  const int parts = Noise::kSequential ? 1 : std::min(threads, kMaxRaceParts);
  Winner winners[kMaxRaceParts];
  parallel_parts(blocks, parts, [&](int64_t begin, int64_t end, int part) {
    Noise own = noise;
    winners[part].origin = origin;
    race(begin, end, own, winners[part], part);
  });
  Winner best = winners[0];
  for (int part = 1; part < parts; ++part)
    if (winners[part].token_id >= 0) best.offer(winners[part].value, winners[part].token_id, winners[part].score);
  return best;
}

// Races a list of survivors, whose ids ascend.
template <typename Noise, typename Finish, typename W>
void race_list(const Survivors& survivors, Noise& noise, const Finish& finish, W& winner) {
  const float* scores = survivors.scores();
  const int32_t* ids = survivors.token_ids();
  for (int64_t i = 0; i < survivors.size(); ++i) {
    if (!survivors.keeps(scores[i])) continue;
    if (!noise.may_reach(ids[i], scores[i] - winner.bar())) continue;
    const float score = finish(scores[i]);
    winner.offer(value_of(score, winner.origin, noise.exponential(ids[i])), ids[i], score);
  }
}

}  // namespace pygen::cpu::PYGEN_ISA
