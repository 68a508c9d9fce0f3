// A view of common/filters.h over the whole row, for rows whose survivors are too many for a list: shared by all
// threads of all blocks of the row. Selections count digits, or steps and then list one of them; weights are integers,
// so the result is exact and the same however the row is split.
#pragma once

#include "cuda/row_team.cuh"
#include "cuda/sorted_list.cuh"

namespace pygen::cuda {

template <typename Scores>
class RowView {
 public:
  // `row` was scanned and is ok; `largest`: its largest score over the temperature.
  PYGEN_DEVICE RowView(const Scores& row, RowTeam& team, float temperature, float largest)
      : row_(row), team_(team), temperature_(temperature), largest_(largest) {}

  PYGEN_DEVICE const Interval& interval() const { return interval_; }
  PYGEN_DEVICE void restrict_to(const Interval& interval) { interval_ = interval; }

  // Calls f(score over temperature, token) for the survivors of the slice, and for the extra tokens in the block that
  // leads.
  template <typename F>
  PYGEN_DEVICE void for_each(const F& f) const {
    row_.for_each_score(Scores::below_quotient(interval_.low, temperature_), team_.leads(),
                        [&](float score, int token) {
                          score = temperature_ == 1.0f ? score : score / temperature_;
                          if (interval_.keeps(score, token)) f(score, token);
                        });
  }

  PYGEN_DEVICE uint64_t mass() const { return total(Total::kMass, 0.0f); }
  PYGEN_DEVICE Distribution distribution() const { return distribution_of(mass(), total(Total::kEnergy, 0.0f)); }
  PYGEN_COLD double standard_deviation() const {
    uint64_t least = 0xFFFFFFFFu;
    for_each([&](float score, int) {
      const uint64_t key = ordered_key(score);
      least = key < least ? key : least;
    });
    least = team_.reduce(least, Smaller{});
    const double range = static_cast<double>(largest_) - value_of_key(static_cast<uint32_t>(least));
    if (range == 0) return 0;
    uint64_t count = 0, depth = 0, squared = 0;
    for_each([&](float score, int) {
      ++count;
      depth += depth_of(score, largest_, range);
      squared += squared_depth_of(score, largest_, range);
    });
    count = team_.reduce(count, Add{});
    depth = team_.reduce(depth, Add{});
    squared = team_.reduce(squared, Add{});
    return standard_deviation_of(count, depth, squared, range);
  }
  PYGEN_DEVICE bool holds_at_least(float low, int n) const {
    return total(Total::kCount, low) >= static_cast<uint64_t>(n);
  }

  PYGEN_DEVICE void keep_at_least(float low) { interval_.raise_low(low); }

  PYGEN_DEVICE void keep_largest_and_ties(int n) {
    const Boundary boundary = boundary_of(Weight::kCount, n, 0.0, Stay::kLowestIds);
    if (boundary.known) {
      keep_at_least(boundary.score);
      return;
    }
    const Cut cut = select(Key::kScore, Weight::kCount, n, 0.0, 0.0f, 0.0f);
    if (cut.found) keep_at_least(value_of_key(cut.key));
  }

  PYGEN_DEVICE void keep_largest(int n) { keep_first(Weight::kCount, n, 0.0, Stay::kLowestIds); }

  PYGEN_DEVICE bool keep_nucleus(float p, int n) {
    const Interval before = interval_;
    if (p > 0) keep_first(Weight::kMass, 0, p, Stay::kHighestIds);
    if (p == 0 || (n > 1 && !holds_at_least(-kInfinity, n))) {
      interval_ = before;
      keep_first(Weight::kCount, n, 0.0, Stay::kHighestIds);
    }
    return true;
  }

  PYGEN_DEVICE void keep_typical(float center, float p, int n) {
    const Cut by_mass = select(Key::kNearness, Weight::kMass, 0, p, center, 0.0f);
    uint32_t bar = by_mass.found ? by_mass.key : 0;
    uint64_t excess = 0;
    if (n > 1) {
      const Cut by_count = select(Key::kNearness, Weight::kCount, n, 0.0, center, 0.0f);
      if (by_count.found && by_count.key < bar) excess = by_count.above + by_count.at - n;
      bar = !by_count.found ? 0 : by_count.key < bar ? by_count.key : bar;
    }
    uint64_t low = 0xFFFFFFFFu, high = 0;
    for_each([&](float score, int) {
      if (nearness(score, center) < bar) return;
      const uint64_t key = ordered_key(score);
      low = key < low ? key : low;
      high = key > high ? key : high;
    });
    low = team_.reduce(low, Smaller{});
    high = team_.reduce(high, Larger{});
    keep_at_least(value_of_key(static_cast<uint32_t>(low)));
    interval_.high = value_of_key(static_cast<uint32_t>(high));
    if (excess > 0) drop_outermost(bar, center, excess);
  }

  // Sends the survivors, at most kListCapacity, to the leader's list, and returns how many.
  PYGEN_COLD int list_survivors() const {
    const RowSmem& smem = team_.smem();
    if (thread_index() < 2) smem.counters.set(thread_index(), 0);
    team_.sync();
    const Shared<uint32_t> counters = team_.cluster() == 1 ? smem.counters : smem.counters.of_block(0);
    const Shared<uint64_t> list = team_.cluster() == 1 ? smem.list : smem.list.of_block(0);
    for_each([&](float score, int token) {
      const uint32_t at = counters.add(0, 1);
      if (at < kListCapacity) list.set(static_cast<int>(at), list_entry(score, token));
    });
    team_.sync();
    return static_cast<int>(team_.from_leader(smem.counters.get(0)));
  }

  PYGEN_DEVICE void keep_top_h(float top_h) {
    keep_largest(kTopHTokens);
    const int count = list_survivors();
    int kept = 0;
    if (team_.leads()) {
      SortedList list(team_.smem().list, count, team_.smem().sums, team_.smem().reduce, largest_, -1);
      list.keep_top_h(top_h);
      kept = list.end();
    }
    keep_largest(static_cast<int>(team_.from_leader(static_cast<uint64_t>(kept))));
  }

 private:
  enum class Key { kScore, kNearness, kLowId, kHighId };
  enum class Weight { kCount, kMass };
  enum class Total { kMass, kEnergy, kCount };

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
  PYGEN_COLD uint64_t total(Total of, float low) const {
    uint64_t sum = 0;
    for_each([&](float score, int) {
      sum += of == Total::kMass     ? mass_of(score, largest_)
             : of == Total::kEnergy ? energy_of(score, largest_)
                                    : static_cast<uint64_t>(score >= low);
    });
    return team_.reduce(sum, Add{});
  }

  // Which of equal scores stay where not all do.
  enum class Stay { kLowestIds, kHighestIds };

  // The largest survivors up to a weight.
  PYGEN_COLD void keep_first(Weight weight, uint64_t target, double share, Stay stay) {
    const Boundary boundary = boundary_of(weight, target, share, stay);
    if (boundary.known) {
      if (boundary.score > -kInfinity) keep_down_to(boundary.score, boundary.token, stay);
      return;
    }
    const Cut cut = select(Key::kScore, weight, target, share, 0.0f, 0.0f);
    if (!cut.found) return;
    const float score = value_of_key(cut.key);
    const uint64_t each = weight == Weight::kCount ? 1 : mass_of(score, largest_);
    const uint64_t kept = (cut.target - cut.above + each - 1) / each;
    keep_at_least(score);
    if (kept >= cut.at / each) return;
    const bool lowest = stay == Stay::kLowestIds;
    const Cut ids = select(lowest ? Key::kLowId : Key::kHighId, Weight::kCount, kept, 0.0, score, score);
    keep_down_to(score, static_cast<int>(lowest ? ~ids.key : ids.key), stay);
  }

  // `token`: the last, or the first, to stay of the survivors with this score.
  PYGEN_DEVICE void keep_down_to(float score, int token, Stay stay) {
    keep_at_least(score);
    (stay == Stay::kLowestIds ? interval_.last_id : interval_.first_id) = token;
  }

  // Removes `excess` of the two outermost scores, the highest ids of both, where their nearness is `bar`.
  PYGEN_DEVICE void drop_outermost(uint32_t bar, float center, uint64_t excess) {
    const bool low_too = nearness(interval_.low, center) == bar, high_too = nearness(interval_.high, center) == bar;
    const float low = low_too ? interval_.low : interval_.high, high = high_too ? interval_.high : interval_.low;
    const Cut cut = select(Key::kHighId, Weight::kCount, excess, 0.0, low, high);
    if (!cut.found) return;
    const int last = static_cast<int>(cut.key) - 1;
    if (low_too) interval_.last_id = last < interval_.last_id ? last : interval_.last_id;
    if (high_too) interval_.until_id = last;
  }

  // `share`: of the weight of all survivors; 0: `target` is the weight. `about`: the center of kNearness; of kLowId and
  // kHighId only tokens with scores equal to `about` or `also` count.
  PYGEN_COLD Cut select(Key kind, Weight weight, uint64_t target, double share, float about, float also) const {
    constexpr int kDigits = kListCapacity;
    const WideSums& sums = team_.smem().sums;
    Cut cut{true, 0, 0, 0, target};
    int shift = 32;
    for (const int bits : {11, 11, 10}) {
      const int known = shift;
      shift -= bits;
      for (int i = thread_index(); i < kDigits; i += kThreads) sums.set(i, 0);
      __syncthreads();
      for_each([&](float score, int token) {
        if ((kind == Key::kLowId || kind == Key::kHighId) && score != about && score != also) return;
        const uint32_t key = kind == Key::kScore      ? ordered_key(score)
                             : kind == Key::kNearness ? nearness(score, about)
                             : kind == Key::kLowId    ? ~static_cast<uint32_t>(token)
                                                      : static_cast<uint32_t>(token);
        if (known < 32 && key >> known != cut.key >> known) return;
        const uint64_t own = weight == Weight::kCount ? 1 : mass_of(score, largest_);
        if (own > 0) sums.add(static_cast<int>(key >> shift & ((1u << bits) - 1)), own);
      });
      const uint64_t digit = take_digit(share, cut);
      if (!cut.found) return cut;
      cut.key |= static_cast<uint32_t>(digit) << shift;
      share = 0.0;
    }
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
  PYGEN_COLD Boundary boundary_of(Weight weight, uint64_t target, double share, Stay stay) const {
    const RowSmem& smem = team_.smem();
    const auto weight_of = [&](float score) { return weight == Weight::kCount ? 1 : mass_of(score, largest_); };
    Cut cut{true, 0, 0, 0, target};
    int step = 0, part = -1;
    for (int round = 0; round < 2; ++round) {
      for (int i = thread_index(); i < kListCapacity; i += kThreads) smem.sums.set(i, 0);
      if (thread_index() < 2) smem.counters.set(thread_index(), 0);
      __syncthreads();
      for_each([&](float score, int) {
        if (round == 1 && step_of(score, false) != step) return;
        const uint64_t own = weight_of(score);
        if (own > 0) smem.sums.add(kListCapacity - 1 - step_of(score, round == 1), own);
      });
      const uint64_t digit = take_digit(share, cut);
      if (!cut.found) return {true, -kInfinity, 0};
      (round == 0 ? step : part) = kListCapacity - 1 - static_cast<int>(digit);
      if (step == kListCapacity - 1) return {false, 0.0f, 0};
      const uint64_t least = weight_of(largest_ - (step + 1) / kStepsPerUnit);
      if (least > 0 && cut.at / least <= kListCapacity) break;
      share = 0.0;
    }
    const Shared<uint32_t> counters = team_.cluster() == 1 ? smem.counters : smem.counters.of_block(0);
    const Shared<uint64_t> to = team_.cluster() == 1 ? smem.list : smem.list.of_block(0);
    for_each([&](float score, int token) {
      if (step_of(score, false) != step || (part >= 0 && step_of(score, true) != part) || weight_of(score) == 0) return;
      const uint32_t at = counters.add(0, 1);
      if (at < kListCapacity) to.set(static_cast<int>(at), list_entry(score, token));
    });
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
  PYGEN_DEVICE uint64_t take_digit(double share, Cut& cut) const {
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

  const Scores& row_;
  RowTeam& team_;
  float temperature_;
  float largest_;
  Interval interval_;
};

}  // namespace pygen::cuda
