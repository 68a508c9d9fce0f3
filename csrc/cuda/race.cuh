// The exponential race: the token with the largest score - ln E wins, ties to the lowest id, and a survivor beats none.
//
// Values are compared in float32 first, which decides where the best is clear of the second best. Elsewhere the tokens
// near the best are compared by `exact_value`, in double.
#pragma once

#include "common/log.h"
#include "common/race_bounds.h"
#include "cuda/double_key.cuh"
#include "cuda/noise.cuh"
#include "cuda/row_view.cuh"

namespace pygen::cuda {

// A token whose value in float32 is below this cannot beat one whose value is `best`.
PYGEN_DEVICE float bar_below(float best) {
  if (best >= -kLowestFloat) return -kLowestFloat;
  return fmaxf(best - (static_cast<float>(kBoundError) +
                       static_cast<float>(kRelativeBoundError) * (fabsf(best) + static_cast<float>(kMaxLogNoise))),
               kLowestFloat);
}

// `origin`: near the largest score, so that a double holds both score - origin and the noise.
PYGEN_COLD double exact_value(float score, float origin, double exponential) {
  return fmax((static_cast<double>(score) - origin) - ln(exponential), -1.7976931348623157e308);
}

// The best of some tokens, in float32.
struct Racer {
  float best = -kInfinity, second = -kInfinity;  // values; -inf: no token
  int token = -1;
  float score = -kInfinity;

  PYGEN_DEVICE void offer(float value, int id, float of_score) {
    second = fmaxf(second, fminf(best, value));
    if (!(value > best)) return;
    best = value;
    token = id;
    score = of_score;
  }
  // Whether float32 is enough to say that it won.
  PYGEN_DEVICE bool clear() const { return second < bar_below(best); }
};

// Of equal ones any: they are not clear.
struct FasterRacer {
  PYGEN_DEVICE static Racer neutral() { return {}; }
  PYGEN_DEVICE Racer operator()(const Racer& a, const Racer& b) const {
    Racer r = b.best > a.best ? b : a;
    r.second = fmaxf(fmaxf(a.second, b.second), fminf(a.best, b.best));
    return r;
  }
  PYGEN_DEVICE static Racer of_warp(const Racer& own) {
    const uint32_t key = ordered_key(own.best), best = Larger::of_warp(key);
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, key == best))) - 1;
    const uint32_t rest = lane_index() == lane ? ordered_key(own.second) : key;
    return {value_of_key(best), value_of_key(Larger::of_warp(rest)), __shfl_sync(kAllLanes, own.token, lane),
            __shfl_sync(kAllLanes, own.score, lane)};
  }
};

// The best by exact values.
struct Winner {
  double value = 0;
  int token = -1;
  float score = -kInfinity;

  PYGEN_DEVICE bool loses_to(const Winner& other) const {
    if (token < 0 || other.token < 0) return other.token >= 0;
    return other.value > value || (other.value == value && other.token < token);
  }
};

struct BetterWinner {
  PYGEN_DEVICE static Winner neutral() { return {}; }
  PYGEN_DEVICE Winner operator()(const Winner& a, const Winner& b) const { return a.loses_to(b) ? b : a; }
  PYGEN_DEVICE static Winner of_warp(const Winner& own) {
    const uint64_t key = own.token < 0 ? 0 : ordered_key(own.value), best = Larger::of_warp(key);
    const uint32_t token = key == best ? static_cast<uint32_t>(own.token) : 0xFFFFFFFFu;  // of none, too
    const uint32_t lowest = __reduce_min_sync(kAllLanes, token);
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, token == lowest))) - 1;
    return {value_of_key(best), static_cast<int>(lowest), __shfl_sync(kAllLanes, own.score, lane)};
  }
};

PYGEN_COLD Racer reduce_racers(Racer own, Shared<Racer> smem) { return block_reduce<Racer>(own, FasterRacer{}, smem); }
PYGEN_COLD Winner reduce_winners(Winner own, Shared<Winner> smem) {
  return block_reduce<Winner>(own, BetterWinner{}, smem);
}
PYGEN_DEVICE Racer block_reduce(const Racer& own, const FasterRacer&, Shared<Racer> smem) {
  return reduce_racers(own, smem);
}
PYGEN_DEVICE Winner block_reduce(const Winner& own, const BetterWinner&, Shared<Winner> smem) {
  return reduce_winners(own, smem);
}

// Races the tokens of a vector. `x`: scores before temperature, -inf for tokens that do not race. `max_score`: the
// largest of them. `bar`: the value that a token has to reach, kept by the lane. R is a Racer or has its `offer`. All
// lanes of a warp.
template <int kCount, typename R>
PYGEN_DEVICE void race_vector(const float (&x)[kCount], int token, float max_score, float temperature,
                              const RowNoise& noise, R& racer, float& bar) {
  bool hopeful = false;
  if (noise.philox()) {
    const int shift = token & 3;  // of the first token in its Philox block
#pragma unroll
    for (int first = 0; first <= kCount; first += 4) {
      if (!(max_score > -kInfinity) || (first == kCount && shift == 0)) continue;
      const PhiloxBlock block = noise.words((token + first) >> 2);
      const uint32_t smallest = min(min(block.word[0], block.word[1]), min(block.word[2], block.word[3]));
      if (!(max_score / temperature - RowNoise::log_from_below(smallest) >= bar)) continue;
      hopeful = true;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float score = -kInfinity;  // of token + at, this word's
        const int at = first + i - shift;
#pragma unroll
        for (int j = max(first + i - 3, 0); j <= first + i && j < kCount; ++j) score = j == at ? x[j] : score;
        if (!(score > -kInfinity)) continue;
        score = score / temperature;
        racer.offer(value_about(score, RowNoise::about_word(block.word[i])), token + at, score);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!(x[i] > -kInfinity)) continue;
      hopeful = true;
      const float score = x[i] / temperature;
      racer.offer(value_about(score, noise.about(token + i)), token + i, score);
    }
  }
  if (__ballot_sync(kAllLanes, hopeful) != 0) bar = bar_below(warp_reduce(racer.best, Larger{}));
}

// Races the extra tokens. All threads of the block that leads.
template <typename Extra, typename R>
PYGEN_DEVICE void race_extra(const Extra& extra, float temperature, const RowNoise& noise, R& racer) {
#pragma unroll 1
  for (int i = thread_index(); i < extra.count(); i += kThreads) {
    const float score = extra.score(i) / temperature;
    if (score > -kInfinity) racer.offer(value_about(score, noise.about(extra.token(i))), extra.token(i), score);
  }
}

// Shared memory for the racers and winners of a block's warps and of the blocks of a row.
struct RaceSmem {
  Shared<Racer> racers;
  Shared<Winner> winners;

  static constexpr int kRacers = kWarps + RowSmem::kMaxBlocks;
  static constexpr size_t kBytes = kRacers * (sizeof(Racer) + sizeof(Winner));

  PYGEN_DEVICE explicit RaceSmem(SharedMemory& shared)
      : racers(shared.take<Racer>(kRacers)), winners(shared.take<Winner>(kRacers)) {}
};

// Sends the best of a block's threads to all blocks of the row. After a barrier `best_of_blocks` returns the row's.
template <typename T, typename Op>
PYGEN_DEVICE void send_best(T own, const Op& op, const RowTeam& team, Shared<T> smem) {
  own = block_reduce(own, op, smem);
  if (team.cluster() == 1) {
    if (thread_index() == 0) smem.set(kWarps, own);
  } else if (thread_index() < team.cluster()) {
    smem.of_block(threadIdx.x).set(kWarps + static_cast<int>(cluster_rank()), own);
  }
}
template <typename T, typename Op>
PYGEN_DEVICE T best_of_blocks(const Op& op, const RowTeam& team, Shared<T> smem) {
  T best = smem.get(kWarps);
#pragma unroll 1
  for (int i = 1; i < team.cluster(); ++i) best = op(best, smem.get(kWarps + i));
  return best;
}

// The winner by exact values among the survivors of `view` near the best racer. All threads of the row.
// `largest`: of the row's scores.
// share(score, token): ln of the share of its weight, at most 1, with which a token races; -inf keeps it out.
template <typename View, typename Share>
PYGEN_DEVICE Racer race_exactly(const View& view, float largest, const RowNoise& noise, const Racer& racer,
                                RowTeam& team, const RaceSmem& smem, const Share& share) {
  const float bar = bar_below(racer.best);
  Winner own;
  view.for_each([&](float score, int token) {
    if (noise.value_about(score, token) < bar) return;
    const double log_share = share(score, token);
    if (log_share == -kInfinity) return;
    const Winner other{exact_value(score, largest, noise.exponential(token)) + log_share, token, score};
    if (own.loses_to(other)) own = other;
  });
  send_best(own, BetterWinner{}, team, smem.winners);
  team.sync();
  const Winner winner = best_of_blocks(BetterWinner{}, team, smem.winners);
  return {racer.best, racer.second, winner.token, winner.score};
}

// The winner of the whole row's survivors. `known`: `racer` is the best in float32. All threads of the row.
template <typename View, typename Noise>
PYGEN_DEVICE Racer race_view(const View& view, float largest, const Noise& noise, Racer racer, bool known,
                             RowTeam& team, const RaceSmem& smem) {
  // In float32, and where that is not enough once more.
#pragma unroll 1
  for (; !known || !racer.clear(); known = true) {
    const float bar = known ? bar_below(racer.best) : kInfinity;
    Racer own;
    Winner own_winner;
    view.for_each([&](float score, int token) {
      const float value = noise.value_about(score, token);
      own.offer(value, token, score);
      if (value < bar) return;
      const Winner other{exact_value(score, largest, noise.exponential(token)), token, score};
      if (own_winner.loses_to(other)) own_winner = other;
    });
    if (known) {
      send_best(own_winner, BetterWinner{}, team, smem.winners);
      team.sync();
      const Winner winner = best_of_blocks(BetterWinner{}, team, smem.winners);
      return {racer.best, racer.second, winner.token, winner.score};
    }
    send_best(own, FasterRacer{}, team, smem.racers);
    team.sync();
    racer = best_of_blocks(FasterRacer{}, team, smem.racers);
  }
  return racer;
}

// The winner by exact values among entries [begin, end) of a sorted list near the best, where float32 is not enough. All
// threads of the block that holds it.
template <typename Params>
PYGEN_COLD Winner race_list_exactly(Shared<uint64_t> list, int begin, int end, const Params& params, int64_t row,
                                    float best, Shared<Winner> smem) {
  const CalledNoise<Params> noise(params, row);
  const float bar = bar_below(best), origin = score_of_entry(list.get(begin));
  Winner own;
#pragma unroll 1
  for (int i = begin + thread_index(); i < end; i += kThreads) {
    const float score = score_of_entry(list.get(i));
    const int token = token_of_entry(list.get(i));
    if (noise.value_about(score, token) < bar) continue;
    const Winner other{exact_value(score, origin, noise.exponential(token)), token, score};
    if (own.loses_to(other)) own = other;
  }
  return block_reduce(own, BetterWinner{}, smem);
}

// The winner of a list's survivors, which begin with the largest unless `typical` removed it. All threads of the block
// that holds it.
template <typename Params>
PYGEN_DEVICE Racer race_list(const SortedList& list, const Params& params, int64_t row, const RaceSmem& smem) {
  const CalledNoise<Params> noise(params, row);
  Racer racer;
#pragma unroll 1
  for (int i = list.begin() + thread_index(); i < list.end(); i += kThreads)
    racer.offer(noise.value_about(list.score(i), list.token(i)), list.token(i), list.score(i));
  racer = block_reduce(racer, FasterRacer{}, smem.racers);
  if (racer.clear()) return racer;
  const Winner winner =
      race_list_exactly(list.entries(), list.begin(), list.end(), params, row, racer.best, smem.winners);
  return {racer.best, racer.second, winner.token, winner.score};
}

}  // namespace pygen::cuda
