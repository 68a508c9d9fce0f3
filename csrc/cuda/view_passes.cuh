// Passes over a whole row's survivors, and the selections that they make. Selections count digits, or steps and then list
// one of them; weights are integers, so the result is exact and the same however the row is split.
#pragma once

#include "cuda/view_state.cuh"

namespace pygen::cuda {

// The passes over a row's survivors and what selections make of them: the code of a RowView that its callers share. All
// threads of the row; barriers of the row before and behind.
template <typename Scores>
class ViewPasses {
 public:
  using Smem = ViewSmem<Scores>;
  using Key = Selection::Key;
  using Weight = Selection::Weight;
  enum class Total { kMass, kEnergy, kCount };
  // Which of the scores that equal the last stay.
  enum class Stay { kLowestIds, kHighestIds, kAll };

  // The start of shared memory, in the order in which a kernel takes it.
  struct Memory {
    SharedMemory shared;
    Smem view{shared};
    RowWords words{shared};
  };
  // What the view was made with. `turn`: of a team that this one goes on for.
  PYGEN_DEVICE static ViewState<Scores> state() { return memory().state.get(0); }
  PYGEN_DEVICE static RowTeam team(const Memory& memory, int turn) {
    const ViewState<Scores> state = memory.view.state.get(0);
    return RowTeam(state.cluster, RowSmem(memory.words, state.list), turn);
  }

  PYGEN_DEVICE static uint32_t nearness(float score, float center) { return ~bits_of(fabsf(score - center)); }

  // Over the survivors; kCount: over those that reach `low`.
  PYGEN_COLD static uint64_t total(Total of, float low) {
    ViewPasses self;
    uint64_t sum = 0;
    self.for_each([&](float score, int) {
      sum += of == Total::kCount ? static_cast<uint64_t>(score >= low)
                                 : energy_or_mass_of(score, self.largest_, of == Total::kEnergy);
    });
    sum = self.team_.reduce(sum, Add{});
    self.team_.sync();
    return sum;
  }

  PYGEN_COLD static double standard_deviation() {
    ViewPasses self;
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
  PYGEN_COLD static void keep_first(Weight weight, uint64_t target, double share, Stay stay) {
    begin(Key::kStep, weight, target, share);
    if (find_among_few()) {
      const uint64_t last = last_of_list(stay);
      if (last != 0) return keep_down_to(score_of_entry(last), token_of_entry(last), stay);
    }
    if (!selection().found) return;
    begin(Key::kScore, weight, target, share);
    const Selection by_score = select();
    if (!by_score.found) return;
    const float score = value_of_key(by_score.key);
    const uint64_t each = by_score.weight_of(score, largest());
    const uint64_t kept = (by_score.target - by_score.above + each - 1) / each;
    int token = 0;
    if (kept * each >= by_score.at) stay = Stay::kAll;
    if (stay != Stay::kAll) {
      const bool lowest = stay == Stay::kLowestIds;
      begin(lowest ? Key::kLowId : Key::kHighId, Weight::kCount, kept, 0.0, score, score);
      const uint32_t key = select().key;
      token = static_cast<int>(lowest ? ~key : key);
    }
    keep_down_to(score, token, stay);
  }

  PYGEN_COLD static void keep_typical(float center, float p, int n) {
    begin(Key::kNearness, Weight::kMass, 0, p, center);
    const Selection by_mass = select();
    uint32_t bar = by_mass.found ? by_mass.key : 0;
    uint64_t excess = 0;
    if (n > 1) {
      begin(Key::kNearness, Weight::kCount, n, 0.0, center);
      const Selection by_count = select();
      if (by_count.found && by_count.key < bar) excess = by_count.above + by_count.at - n;
      bar = !by_count.found ? 0 : by_count.key < bar ? by_count.key : bar;
    }
    ViewPasses self;
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
    Interval interval = memory().interval.get(0);
    interval.raise_low(value_of_key(static_cast<uint32_t>(low)));
    interval.high = value_of_key(static_cast<uint32_t>(high));
    set_interval(interval);
    if (excess > 0) drop_outermost(bar, center, excess);
  }

  // Sends the survivors, at most kListCapacity, to the leader's list, and returns how many.
  PYGEN_DEVICE static int list_survivors() {
    // Nothing is known of the key: all match.
    begin(Key::kScore, Weight::kCount, 0, 0.0);
    return look_through(true);
  }

  // Likewise those whose ids begin like `first`, apart from the last bits.
  PYGEN_DEVICE static int list_ids(int first, int unknown_bits) {
    begin(Key::kId, Weight::kCount, 0, 0.0);
    if (thread_index() == 0) {
      Selection now = selection();
      now.key = static_cast<uint32_t>(first);
      now.unknown = unknown_bits;
      memory().selection.set(0, now);
    }
    __syncthreads();
    return look_through(true);
  }

  PYGEN_DEVICE static Interval interval() { return memory().interval.get(0); }
  // Replaces the survivors; the same in all threads of a block.
  PYGEN_COLD static void set_interval(Interval interval) {
    __syncthreads();
    if (thread_index() == 0) memory().interval.set(0, interval);
    __syncthreads();
  }
  PYGEN_DEVICE static void keep_at_least(float low) { keep_down_to(low, 0, Stay::kAll); }

  // Calls f(score over temperature, token) for the survivors of the slice, and for the extra tokens in the block that
  // leads. The slow part is a function: passes are many.
  template <typename F>
  PYGEN_DEVICE static void for_each_survivor(int steps, const F& f) {
#pragma unroll 1
    for (int step = 0; step < steps;) {
      const Found found = survivors_at(step);
      step = found.next;
      found.for_each(f);
    }
  }

 private:
  using Found = typename Scores::Found;

  PYGEN_DEVICE ViewPasses() : ViewPasses(Memory()) { team_.sync(); }
  PYGEN_DEVICE explicit ViewPasses(const Memory& memory) : ViewPasses(memory.view.state.get(0), memory.words) {}
  PYGEN_DEVICE ViewPasses(const ViewState<Scores>& state, const RowWords& words)
      : team_(state.cluster, RowSmem(words, state.list)), steps_(state.steps), largest_(state.largest) {}

  PYGEN_DEVICE static Smem memory() { return Memory().view; }

  // The survivors of a step.
  PYGEN_COLD static Found survivors_at(int step) {
    const ViewState<Scores> state = memory().state.get(0);
    const Interval survivors = memory().interval.get(0);
    Found found = state.row.found_at(step, Scores::below_quotient(survivors.low, state.temperature));
    if (found.which == 0) return found;
    // One turn of the loop in the code: the scores move on by one place.
#pragma unroll 1
    for (int i = 0; i < Scores::kCount; ++i) {
      const float score = found.x[0] / state.temperature;
      if (!survivors.keeps(score, found.token + i)) found.which &= ~(1u << i);
      found.move_on(score);
    }
    return found;
  }

  template <typename F>
  PYGEN_DEVICE void for_each(const F& f) const {
    for_each_survivor(steps_, f);
  }

  // Removes survivors below `score`. `token`: the last, or the first, to stay of those with this score.
  PYGEN_COLD static void keep_down_to(float score, int token, Stay stay) {
    Interval interval = memory().interval.get(0);
    interval.raise_low(score);
    if (stay == Stay::kLowestIds) interval.last_id = token;
    if (stay == Stay::kHighestIds) interval.first_id = token;
    set_interval(interval);
  }

  // Removes `excess` of the two outermost scores, the highest ids of both, where their nearness is `bar`.
  PYGEN_DEVICE static void drop_outermost(uint32_t bar, float center, uint64_t excess) {
    Interval interval = memory().interval.get(0);
    const bool low_too = nearness(interval.low, center) == bar, high_too = nearness(interval.high, center) == bar;
    const float low = low_too ? interval.low : interval.high, high = high_too ? interval.high : interval.low;
    begin(Key::kHighId, Weight::kCount, excess, 0.0, low, high);
    const Selection ids = select();
    if (!ids.found) return;
    const int last = static_cast<int>(ids.key) - 1;
    if (low_too) interval.last_id = last < interval.last_id ? last : interval.last_id;
    if (high_too) interval.until_id = last;
    set_interval(interval);
  }

  PYGEN_DEVICE static Selection selection() { return memory().selection.get(0); }
  PYGEN_DEVICE static float largest() { return memory().state.get(0).largest; }
  PYGEN_COLD static void begin(Key kind, Weight weight, uint64_t target, double share, float about = 0.0f,
                               float also = 0.0f) {
    __syncthreads();
    if (thread_index() == 0) memory().selection.set(0, Selection(kind, weight, target, share, about, also));
    __syncthreads();
  }
  PYGEN_DEVICE static Selection select() {
#pragma unroll 1
    while (selection().found && selection().unknown > 0) look_through(false);
    return selection();
  }

  // Two digits that descend as a score falls below the largest: the step, and the part of it. kListCapacity steps of
  // 1/64 reach 32 below the largest, where 2^20 tokens have 1e-8 of its mass; the last step is left to kScore.
  static constexpr float kStepsPerUnit = 64.0f;
  PYGEN_DEVICE uint32_t step_key(float score) const {
    constexpr float kSteps = kListCapacity;
    const float steps = fminf((largest_ - score) * kStepsPerUnit, kSteps - 1.0f);
    const int step = static_cast<int>(steps), part = static_cast<int>((steps - floorf(steps)) * kSteps);
    return static_cast<uint32_t>(kListCapacity - 1 - step) << 11 | static_cast<uint32_t>(kListCapacity - 1 - part);
  }

  // Looks for the survivor, largest first, at which a weight is reached, among few that share a step or a part of one.
  // False: no survivor reaches the weight, or too many share the step.
  PYGEN_DEVICE static bool find_among_few() {
#pragma unroll 1
    do {
      look_through(false);
      const Selection now = selection();
      const int step = kListCapacity - 1 - static_cast<int>(now.key >> 11);
      if (!now.found || step == kListCapacity - 1) return false;
      const uint64_t least = now.weight_of(largest() - (step + 1) / kStepsPerUnit, largest());
      if (least > 0 && now.at < least * (kListCapacity + 1)) break;
    } while (selection().unknown > 0);
    return true;
  }
  // Lists the survivors that are left, and gives the one at which the weight is reached as the entry of a list; 0: there
  // are too many.
  PYGEN_DEVICE static uint64_t last_of_list(Stay stay) {
    const int count = look_through(true);
    ViewPasses self;
    const RowSmem& of_row = self.team_.smem();
    uint64_t entry = 0;
    if (self.team_.leads() && count <= kListCapacity) {
      const SortedList list(of_row.list, count, of_row.sums, of_row.reduce, self.largest_, -1);
      const Selection now = selection();
      const uint64_t wanted = now.target - now.above;
      const int last = now.weight == Weight::kCount ? static_cast<int>(wanted) - 1 : list.first_to_reach(wanted);
      entry = list_entry(list.score(last), list.token(stay == Stay::kLowestIds ? last : list.mirrored_in_ties(last)));
    }
    return self.team_.from_leader(entry);
  }

  // Of the survivors whose keys begin like the selection's: sends them, at most kListCapacity, to the leader's list, and
  // returns how many; or finds the next digit.
  PYGEN_COLD static int look_through(bool lists) {
    ViewPasses self;
    Selection selection = memory().selection.get(0);
    const RowSmem& of_row = self.team_.smem();
    const int shift = selection.unknown - selection.digit_bits();
    if (lists) {
      if (thread_index() < 2) of_row.counters.set(thread_index(), 0);
    } else {
#pragma unroll 1
      for (int i = thread_index(); i < kListCapacity; i += kThreads) of_row.sums.set(i, 0);
    }
    self.team_.sync();
    self.for_each([&](float score, int token) {
      // Read here, so that the compiler does not make a loop for every kind.
      const Selection now = memory().selection.get(0);
      if (now.kind >= Key::kLowId && score != now.about && score != now.also) return;
      const uint32_t key = now.kind == Key::kScore      ? ordered_key(score)
                           : now.kind == Key::kStep     ? self.step_key(score)
                           : now.kind == Key::kNearness ? nearness(score, now.about)
                           : now.kind == Key::kLowId    ? ~static_cast<uint32_t>(token)
                                                        : static_cast<uint32_t>(token);
      if (static_cast<uint64_t>(key ^ now.key) >> now.unknown != 0) return;
      const uint64_t own = now.weight_of(score, self.largest_);
      if (own == 0) return;
      if (lists) {
        self.send(score, token);
      } else {
        of_row.sums.add(static_cast<int>(key >> shift & ((1u << selection.digit_bits()) - 1)), own);
      }
    });
    self.team_.sync();
    if (!lists) {
      self.add_to_leader();
      self.team_.sync();
    }
    uint64_t broadcast[4] = {};
    if (self.team_.leads()) {
      broadcast[0] = lists ? of_row.counters.get(0) : self.find_digit(selection);
      broadcast[1] = selection.above;
      broadcast[2] = selection.at;
      broadcast[3] = selection.target;
    }
    self.team_.take_from_leader(broadcast);
    if (!lists && thread_index() == 0) {
      selection.found = broadcast[0] < kListCapacity;
      if (selection.found) selection.key |= static_cast<uint32_t>(broadcast[0]) << shift;
      selection.unknown = shift;
      selection.above = broadcast[1];
      selection.at = broadcast[2];
      selection.target = broadcast[3];
      selection.share = 0.0;
      memory().selection.set(0, selection);
    }
    self.team_.sync();
    return static_cast<int>(broadcast[0]);
  }

  // To the list of the block that leads.
  PYGEN_DEVICE void send(float score, int token) const {
    const RowSmem& smem = team_.smem();
    const Shared<uint32_t> counters = smem.counters.of_block(0);
    const Shared<uint64_t> list = smem.list.of_block(0);
    const uint32_t at = counters.add(0, 1);
    if (at < kListCapacity) list.set(static_cast<int>(at), list_entry(score, token));
  }

  // The counts of digits of the other blocks go to the leader.
  PYGEN_DEVICE void add_to_leader() const {
    const WideSums& sums = team_.smem().sums;
    if (team_.leads()) return;
#pragma unroll 1
    for (int i = thread_index(); i < kListCapacity; i += kThreads)
      if (const uint64_t own = sums.get(i); own > 0) sums.of_block(0).add(i, own);
  }

  // The leader's part: the digit at which the target is reached, kListCapacity where it is not.
  PYGEN_DEVICE uint64_t find_digit(Selection& selection) const {
    const WideSums& sums = team_.smem().sums;
    constexpr int kEach = kListCapacity / kThreads;
    const int last = kListCapacity - 1 - thread_index() * kEach;
    uint64_t own = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) own += sums.get(last - i);
    const Shared<uint64_t> smem = team_.smem().reduce;
    const RunningSum sum = block_inclusive_sum(own, smem);
    uint64_t above = selection.above + sum.here - own;
    if (selection.share > 0) selection.target = share_of(selection.share, static_cast<double>(sum.all));
    __syncthreads();
    if (thread_index() == 0) smem.set(0, kListCapacity);
    __syncthreads();
    if (above < selection.target && above + own >= selection.target) {
      int digit = last;
      while (above + sums.get(digit) < selection.target) above += sums.get(digit--);
      smem.set(0, static_cast<uint64_t>(digit));
      smem.set(1, above);
    }
    __syncthreads();
    const uint64_t digit = smem.get(0);
    if (digit < kListCapacity) {
      selection.above = smem.get(1);
      selection.at = sums.get(static_cast<int>(digit));
    }
    return digit;
  }

  RowTeam team_;
  const int steps_;
  const float largest_;
};

}  // namespace pygen::cuda
