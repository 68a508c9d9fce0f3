// Passes over a whole row's survivors, and the selections that they make. Selections count digits, or steps and then list
// one of them; weights are integers, so the result is exact and the same however the row is split.
#pragma once

#include "cuda/row_team.cuh"
#include "cuda/sorted_list.cuh"

namespace pygen::cuda {

// Calls f(score over temperature, token) for the survivors of the slice, and for the extra tokens in the block that
// leads.
template <typename Scores, typename F>
PYGEN_DEVICE void for_each_survivor(const Scores& row, const RowTeam& team, float temperature,
                                    const Interval& survivors, const F& f) {
  row.for_each_score(Scores::below_quotient(survivors.low, temperature), team.leads(), [&](float score, int token) {
    score = temperature == 1.0f ? score : score / temperature;
    if (survivors.keeps(score, token)) f(score, token);
  });
}

// What a pass over a row needs, in shared memory: the functions below are not inlined, and as arguments these objects
// would be in local memory. The same in all threads of a block.
template <typename Scores>
struct ViewState {
  Scores row;
  RowSmem smem;
  int cluster;
  float temperature, largest;
};

template <typename Scores>
struct ViewSmem {
  Shared<ViewState<Scores>> state;
  Shared<Interval> interval;  // of the survivors

  PYGEN_DEVICE explicit ViewSmem(SharedMemory& shared)
      : state(shared.take<ViewState<Scores>>(1)), interval(shared.take<Interval>(1)) {}
  static constexpr size_t kBytes = (sizeof(ViewState<Scores>) + 15) / 16 * 16 + (sizeof(Interval) + 15) / 16 * 16;
};

// The passes over a row's survivors and what selections make of them: the code of a RowView that its callers share. All
// threads of the row; barriers of the row before and behind.
template <typename Scores>
class ViewPasses {
 public:
  using Smem = ViewSmem<Scores>;
  enum class Key { kScore, kNearness, kLowId, kHighId };
  enum class Weight { kCount, kMass };
  enum class Total { kMass, kEnergy, kCount };
  // Which of the scores that equal the last stay.
  enum class Stay { kLowestIds, kHighestIds, kAll };

  // The largest key at which the weight of all keys >= it reaches the target.
  struct Cut {
    bool found;
    uint32_t key;
    uint64_t above;   // weight of larger keys
    uint64_t at;      // of this one
    uint64_t target;  // the weight that was asked for
  };

  PYGEN_DEVICE static uint32_t nearness(float score, float center) { return ~bits_of(fabsf(score - center)); }

  // Over the survivors; kCount: over those that reach `low`.
  PYGEN_COLD static uint64_t total(Smem smem, Total of, float low) {
    ViewPasses self(smem);
    uint64_t sum = 0;
    self.for_each([&](float score, int) {
      sum += of == Total::kMass     ? mass_of(score, self.largest_)
             : of == Total::kEnergy ? energy_of(score, self.largest_)
                                    : static_cast<uint64_t>(score >= low);
    });
    sum = self.team_.reduce(sum, Add{});
    self.team_.sync();
    return sum;
  }

  PYGEN_COLD static double standard_deviation(Smem smem) {
    ViewPasses self(smem);
    uint64_t least = 0xFFFFFFFFu;
    self.for_each([&](float score, int) {
      const uint64_t key = ordered_key(score);
      least = key < least ? key : least;
    });
    least = self.team_.reduce(least, Smaller{});
    const double range = static_cast<double>(self.largest_) - value_of_key(static_cast<uint32_t>(least));
    uint64_t count = 0, depth = 0, squared = 0;
    if (range != 0)
      self.for_each([&](float score, int) {
        ++count;
        depth += depth_of(score, self.largest_, range);
        squared += squared_depth_of(score, self.largest_, range);
      });
    count = self.team_.reduce(count, Add{});
    depth = self.team_.reduce(depth, Add{});
    squared = self.team_.reduce(squared, Add{});
    self.team_.sync();
    return range == 0 ? 0 : standard_deviation_of(count, depth, squared, range);
  }

  // Keeps the largest survivors up to a weight.
  PYGEN_COLD static void keep_first(Smem smem, Weight weight, uint64_t target, double share, Stay stay) {
    ViewPasses self(smem);
    const Boundary boundary = self.boundary_of(weight, target, share, stay);
    self.team_.sync();
    if (boundary.known) {
      if (boundary.score > -kInfinity) keep_down_to(smem, boundary.score, boundary.token, stay);
      return;
    }
    const Cut cut = select(smem, Key::kScore, weight, target, share, 0.0f, 0.0f);
    if (!cut.found) return;
    const float score = value_of_key(cut.key);
    const uint64_t each = weight == Weight::kCount ? 1 : mass_of(score, self.largest_);
    const uint64_t kept = (cut.target - cut.above + each - 1) / each;
    change(smem, [&](Interval& interval) { interval.raise_low(score); });
    if (stay == Stay::kAll || kept >= cut.at / each) return;
    const bool lowest = stay == Stay::kLowestIds;
    const Cut ids = select(smem, lowest ? Key::kLowId : Key::kHighId, Weight::kCount, kept, 0.0, score, score);
    keep_down_to(smem, score, static_cast<int>(lowest ? ~ids.key : ids.key), stay);
  }

  PYGEN_COLD static void keep_typical(Smem smem, float center, float p, int n) {
    const Cut by_mass = select(smem, Key::kNearness, Weight::kMass, 0, p, center, 0.0f);
    uint32_t bar = by_mass.found ? by_mass.key : 0;
    uint64_t excess = 0;
    if (n > 1) {
      const Cut by_count = select(smem, Key::kNearness, Weight::kCount, n, 0.0, center, 0.0f);
      if (by_count.found && by_count.key < bar) excess = by_count.above + by_count.at - n;
      bar = !by_count.found ? 0 : by_count.key < bar ? by_count.key : bar;
    }
    ViewPasses self(smem);
    uint64_t low = 0xFFFFFFFFu, high = 0;
    self.for_each([&](float score, int) {
      if (nearness(score, center) < bar) return;
      const uint64_t key = ordered_key(score);
      low = key < low ? key : low;
      high = key > high ? key : high;
    });
    low = self.team_.reduce(low, Smaller{});
    high = self.team_.reduce(high, Larger{});
    self.team_.sync();
    change(smem, [&](Interval& interval) {
      interval.raise_low(value_of_key(static_cast<uint32_t>(low)));
      interval.high = value_of_key(static_cast<uint32_t>(high));
    });
    if (excess > 0) drop_outermost(smem, bar, center, excess);
  }

  // Sends the survivors, at most kListCapacity, to the leader's list, and returns how many.
  PYGEN_COLD static int list_survivors(Smem smem) {
    ViewPasses self(smem);
    const RowSmem& of_row = self.team_.smem();
    if (thread_index() < 2) of_row.counters.set(thread_index(), 0);
    self.team_.sync();
    self.for_each([&](float score, int token) { self.send(score, token); });
    self.team_.sync();
    const int count = static_cast<int>(self.team_.from_leader(of_row.counters.get(0)));
    self.team_.sync();
    return count;
  }

  // Changes the survivors; the same in all threads of a block.
  template <typename Change>
  PYGEN_DEVICE static void change(const Smem& smem, const Change& how) {
    Interval interval = smem.interval.get(0);
    how(interval);
    __syncthreads();
    if (thread_index() == 0) smem.interval.set(0, interval);
    __syncthreads();
  }

 private:
  PYGEN_DEVICE explicit ViewPasses(const Smem& smem) : ViewPasses(smem.state.get(0), smem.interval.get(0)) {
    team_.sync();
  }
  PYGEN_DEVICE ViewPasses(const ViewState<Scores>& state, const Interval& interval)
      : row_(state.row),
        team_(state.cluster, state.smem),
        temperature_(state.temperature),
        largest_(state.largest),
        interval_(interval) {}

  template <typename F>
  PYGEN_DEVICE void for_each(const F& f) const {
    for_each_survivor(row_, team_, temperature_, interval_, f);
  }

  // To the list of the block that leads.
  PYGEN_DEVICE void send(float score, int token) const {
    const RowSmem& smem = team_.smem();
    const Shared<uint32_t> counters = team_.cluster() == 1 ? smem.counters : smem.counters.of_block(0);
    const Shared<uint64_t> list = team_.cluster() == 1 ? smem.list : smem.list.of_block(0);
    const uint32_t at = counters.add(0, 1);
    if (at < kListCapacity) list.set(static_cast<int>(at), list_entry(score, token));
  }

  // `token`: the last, or the first, to stay of the survivors with this score.
  PYGEN_DEVICE static void keep_down_to(const Smem& smem, float score, int token, Stay stay) {
    change(smem, [&](Interval& interval) {
      interval.raise_low(score);
      if (stay == Stay::kAll) return;
      (stay == Stay::kLowestIds ? interval.last_id : interval.first_id) = token;
    });
  }

  // Removes `excess` of the two outermost scores, the highest ids of both, where their nearness is `bar`.
  PYGEN_DEVICE static void drop_outermost(const Smem& smem, uint32_t bar, float center, uint64_t excess) {
    const Interval survivors = smem.interval.get(0);
    const bool low_too = nearness(survivors.low, center) == bar, high_too = nearness(survivors.high, center) == bar;
    const float low = low_too ? survivors.low : survivors.high, high = high_too ? survivors.high : survivors.low;
    const Cut cut = select(smem, Key::kHighId, Weight::kCount, excess, 0.0, low, high);
    if (!cut.found) return;
    const int last = static_cast<int>(cut.key) - 1;
    change(smem, [&](Interval& interval) {
      if (low_too) interval.last_id = last < interval.last_id ? last : interval.last_id;
      if (high_too) interval.until_id = last;
    });
  }

  // `share`: of the weight of all survivors; 0: `target` is the weight. `about`: the center of kNearness; of kLowId and
  // kHighId only tokens with scores equal to `about` or `also` count.
  PYGEN_COLD static Cut select(Smem smem, Key kind, Weight weight, uint64_t target, double share, float about,
                               float also) {
    ViewPasses self(smem);
    constexpr int kDigits = kListCapacity;
    const WideSums& sums = self.team_.smem().sums;
    Cut cut{true, 0, 0, 0, target};
    int shift = 32;
#pragma unroll 1
    while (shift > 0) {
      const int known = shift, bits = shift > 10 ? 11 : 10;
      shift -= bits;
      for (int i = thread_index(); i < kDigits; i += kThreads) sums.set(i, 0);
      __syncthreads();
      self.for_each([&](float score, int token) {
        if ((kind == Key::kLowId || kind == Key::kHighId) && score != about && score != also) return;
        const uint32_t key = kind == Key::kScore      ? ordered_key(score)
                             : kind == Key::kNearness ? nearness(score, about)
                             : kind == Key::kLowId    ? ~static_cast<uint32_t>(token)
                                                      : static_cast<uint32_t>(token);
        if (known < 32 && key >> known != cut.key >> known) return;
        const uint64_t own = weight == Weight::kCount ? 1 : mass_of(score, self.largest_);
        if (own > 0) sums.add(static_cast<int>(key >> shift & ((1u << bits) - 1)), own);
      });
      const uint64_t digit = self.take_digit(share, cut);
      if (!cut.found) break;
      cut.key |= static_cast<uint32_t>(digit) << shift;
      share = 0.0;
    }
    self.team_.sync();
    return cut;
  }

  // The end of a selection among the survivors.
  struct Boundary {
    bool known;
    float score;  // -inf: the selection keeps all
    int token;    // the last, or the first, to stay of those with this score
  };

  // Two digits that ascend as a score falls below the largest: the step, and the part of it. kListCapacity steps of
  // 1/64 reach 32 below the largest, where 2^20 tokens have 1e-8 of its mass; the last step is left to `select`.
  static constexpr float kStepsPerUnit = 64.0f;
  PYGEN_DEVICE int step_of(float score, bool part) const {
    constexpr float kSteps = kListCapacity;
    const float steps = fminf((largest_ - score) * kStepsPerUnit, kSteps - 1.0f);
    return static_cast<int>(part ? (steps - floorf(steps)) * kSteps : steps);
  }

  // The survivor, largest first, at which a weight is reached. Unlike `select` it also finds the id, but only where few
  // scores share a step: it counts steps, once or twice, and lists the scores of one.
  PYGEN_DEVICE Boundary boundary_of(Weight weight, uint64_t target, double share, Stay stay) {
    const RowSmem& smem = team_.smem();
    const auto weight_of = [&](float score) { return weight == Weight::kCount ? 1 : mass_of(score, largest_); };
    Cut cut{true, 0, 0, 0, target};
    int step = 0, part = -1;
    // Counts steps, then perhaps the parts of one, and lists what is left: one loop, so that the pass is there once.
#pragma unroll 1
    for (int round = 0;; ++round) {
      const bool lists = round == 2;
      if (!lists)
        for (int i = thread_index(); i < kListCapacity; i += kThreads) smem.sums.set(i, 0);
      if (thread_index() < 2 && round == 0) smem.counters.set(thread_index(), 0);
      __syncthreads();
      for_each([&](float score, int token) {
        if (round > 0 && step_of(score, false) != step) return;
        if (lists && part >= 0 && step_of(score, true) != part) return;
        const uint64_t own = weight_of(score);
        if (own == 0) return;
        if (lists) {
          send(score, token);
        } else {
          smem.sums.add(kListCapacity - 1 - step_of(score, round == 1), own);
        }
      });
      if (lists) break;
      const uint64_t digit = take_digit(share, cut);
      if (!cut.found) return {true, -kInfinity, 0};
      (round == 0 ? step : part) = kListCapacity - 1 - static_cast<int>(digit);
      if (step == kListCapacity - 1) return {false, 0.0f, 0};
      const uint64_t least = weight_of(largest_ - (step + 1) / kStepsPerUnit);
      if (least > 0 && cut.at / least <= kListCapacity) round = 1;
      share = 0.0;
    }
    team_.sync();
    uint64_t entry = 0;
    if (const int count = static_cast<int>(smem.counters.get(0)); team_.leads() && count <= kListCapacity) {
      const SortedList list(smem.list, count, smem.sums, smem.reduce, largest_, -1);
      const uint64_t wanted = cut.target - cut.above;
      const int last = weight == Weight::kCount ? static_cast<int>(wanted) - 1 : list.first_to_reach(wanted);
      entry = list_entry(list.score(last), list.token(stay == Stay::kLowestIds ? last : list.mirrored_in_ties(last)));
    }
    entry = team_.from_leader(entry);
    return {entry != 0, score_of_entry(entry), token_of_entry(entry)};
  }

  // The end of a count of digits: the digit at which the target is reached, the leader's for all. `share`: where it is
  // not 0, of all that was counted, the target.
  PYGEN_DEVICE uint64_t take_digit(double share, Cut& cut) {
    const WideSums& sums = team_.smem().sums;
    team_.sync();
    if (!team_.leads()) {
      for (int i = thread_index(); i < kListCapacity; i += kThreads)
        if (const uint64_t own = sums.get(i); own > 0) sums.of_block(0).add(i, own);
    }
    if (team_.cluster() > 1) team_.sync();
    uint64_t broadcast[4] = {};
    if (team_.leads()) {
      broadcast[0] = find_digit(sums, share, cut);
      broadcast[1] = cut.above;
      broadcast[2] = cut.at;
      broadcast[3] = cut.target;
    }
    team_.take_from_leader(broadcast);
    cut.found = broadcast[0] < kListCapacity;
    cut.above = broadcast[1];
    cut.at = broadcast[2];
    cut.target = broadcast[3];
    return broadcast[0];
  }

  // The leader's part of it: the digit at which the target is reached, kListCapacity where it is not.
  PYGEN_DEVICE uint64_t find_digit(const WideSums& sums, double share, Cut& cut) const {
    constexpr int kEach = kListCapacity / kThreads;
    const int last = kListCapacity - 1 - thread_index() * kEach;
    uint64_t own = 0, all;
#pragma unroll
    for (int i = 0; i < kEach; ++i) own += sums.get(last - i);
    const Shared<uint64_t> smem = team_.smem().reduce;
    uint64_t above = cut.above + block_inclusive_sum(own, smem, all) - own;
    if (share > 0) cut.target = share_of(share, static_cast<double>(all));
    __syncthreads();
    if (thread_index() == 0) smem.set(0, kListCapacity);
    __syncthreads();
    if (above < cut.target && above + own >= cut.target) {
      int digit = last;
      while (above + sums.get(digit) < cut.target) above += sums.get(digit--);
      smem.set(0, static_cast<uint64_t>(digit));
      smem.set(1, above);
    }
    __syncthreads();
    const uint64_t digit = smem.get(0);
    if (digit < kListCapacity) {
      cut.above = smem.get(1);
      cut.at = sums.get(static_cast<int>(digit));
    }
    return digit;
  }

  const Scores row_;
  RowTeam team_;
  const float temperature_, largest_;
  const Interval interval_;
};

}  // namespace pygen::cuda
