// RowView: a view of common/filters.h over the whole row, for rows whose survivors are too many for a list, shared by all
// threads of all blocks of the row.
#pragma once

#include "cuda/view_passes.cuh"

namespace pygen::cuda {

template <typename Scores>
class RowView {
 public:
  using Passes = ViewPasses<Scores>;

  // `row` was scanned and is ok; `largest`: its largest score over the temperature.
  PYGEN_DEVICE RowView(const ViewSmem<Scores>& smem, const Scores& row, const RowTeam& team, float temperature,
                       float largest)
      : RowView(smem, row, team, temperature, largest, row.steps(team.leads())) {}
  // Goes on for another object.
  PYGEN_DEVICE explicit RowView(const RowTeam& team)
      : team_(team), steps_(Passes::state().steps), largest_(Passes::state().largest) {}

  PYGEN_DEVICE Interval interval() const { return Passes::interval(); }
  PYGEN_DEVICE void restrict_to(const Interval& to) { Passes::set_interval(to); }

  // Calls f(score over temperature, token) for the survivors of the slice, and for the extra tokens in the block that
  // leads.
  template <typename F>
  PYGEN_DEVICE void for_each(const F& f) const {
    Passes::for_each_survivor(steps_, f);
  }

  PYGEN_DEVICE uint64_t mass() const { return Passes::total(Passes::Total::kMass, 0.0f); }
  PYGEN_DEVICE Distribution distribution() const {
    return distribution_of(mass(), Passes::total(Passes::Total::kEnergy, 0.0f));
  }
  PYGEN_DEVICE double standard_deviation() const { return Passes::standard_deviation(); }
  PYGEN_DEVICE bool holds_at_least(float low, int n) const {
    return Passes::total(Passes::Total::kCount, low) >= static_cast<uint64_t>(n);
  }
  PYGEN_DEVICE int list_survivors() const { return Passes::list_survivors(); }
  PYGEN_DEVICE int list_ids(int first, int unknown_bits) const { return Passes::list_ids(first, unknown_bits); }
  PYGEN_DEVICE int count() const { return static_cast<int>(Passes::total(Passes::Total::kCount, -kInfinity)); }

  PYGEN_DEVICE void keep_at_least(float low) { Passes::keep_at_least(low); }
  PYGEN_DEVICE void keep_largest_and_ties(int n) {
    Passes::keep_first(Passes::Weight::kCount, n, 0.0, Passes::Stay::kAll);
  }
  PYGEN_DEVICE void keep_largest(int n) {
    Passes::keep_first(Passes::Weight::kCount, n, 0.0, Passes::Stay::kLowestIds);
  }
  PYGEN_DEVICE bool keep_nucleus(float p, int n) {
    const Interval before = interval();
    if (p > 0) Passes::keep_first(Passes::Weight::kMass, 0, p, Passes::Stay::kHighestIds);
    if (p == 0 || (n > 1 && !holds_at_least(-kInfinity, n))) {
      restrict_to(before);
      Passes::keep_first(Passes::Weight::kCount, n, 0.0, Passes::Stay::kHighestIds);
    }
    return true;
  }
  PYGEN_DEVICE void keep_typical(float center, float p, int n) { Passes::keep_typical(center, p, n); }

  PYGEN_DEVICE void keep_top_h(float top_h) {
    keep_largest(kTopHTokens);
    const int count = list_survivors();
    RowTeam team(team_);
    int kept = 0;
    if (team.leads()) {
      SortedList list(team.smem().list, count, team.smem().sums, team.smem().reduce, largest_, -1);
      list.keep_top_h(top_h);
      kept = list.end();
    }
    kept = static_cast<int>(team.from_leader(static_cast<uint64_t>(kept)));
    team.sync();
    keep_largest(kept);
  }

 private:
  PYGEN_DEVICE RowView(const ViewSmem<Scores>& smem, const Scores& row, const RowTeam& team, float temperature,
                       float largest, int steps)
      : team_(team), steps_(steps), largest_(largest) {
    if (thread_index() == 0) {
      smem.state.set(0, ViewState<Scores>{row, team.smem().list, team.cluster(), steps_, temperature, largest});
      smem.interval.set(0, Interval{});
    }
    __syncthreads();
  }

  const RowTeam& team_;
  const int steps_;
  const float largest_;
};

}  // namespace pygen::cuda
