// The best tokens of a row with their log-probabilities, as the results of ops hold them.
#pragma once

#include "common/log.h"
#include "common/log_sum.h"
#include "cuda/row_view.cuh"

namespace pygen::cuda {

// Of a sum of masses, in units, of scores of which the largest is `largest`.
PYGEN_DEVICE LogSum log_sum_exp(float largest, double mass) { return {largest, ln(mass / kMassUnits)}; }

// Writes the `count` best of a row. The threads of the leader call.
struct TopLogprobs {
  int64_t* ids;
  float* logprobs;
  int64_t count;

  // Writes the survivors of a list, the next best, from index `first` on. `last`: no others follow.
  PYGEN_DEVICE void write(const SortedList& list, int64_t first, bool last, const LogSum& log_sum) const {
    if (count > 0) write_list(*this, list.entries(), list.begin(), list.end(), first, last, log_sum);
  }
  // Of a row that is not OK.
  PYGEN_DEVICE void write_none() const { write_none(*this); }

 private:
  PYGEN_COLD static void write_none(TopLogprobs to) {
#pragma unroll 1
    for (int64_t i = thread_index(); i < to.count; i += kThreads) {
      to.ids[i] = -1;
      to.logprobs[i] = __builtin_nanf("");
    }
  }
  PYGEN_COLD static void write_list(TopLogprobs to, Shared<uint64_t> list, int begin, int end, int64_t first, bool last,
                                    LogSum log_sum) {
    const int64_t found = end - begin;
    const int64_t stop = last || first + found > to.count ? to.count : first + found;
#pragma unroll 1
    for (int64_t i = first + thread_index(); i < stop; i += kThreads) {
      const bool some = i - first < found;
      const uint64_t entry = some ? list.get(begin + static_cast<int>(i - first)) : 0;
      to.ids[i] = some ? token_of_entry(entry) : -1;
      to.logprobs[i] = some ? log_probability(score_of_entry(entry), log_sum) : -kInfinity;
    }
  }
};

// The best of the survivors of a view that are too many for one list, a list at a time. All threads of the row.
template <typename Scores>
PYGEN_DEVICE void write_top_of_view(const TopLogprobs& top, RowView<Scores>& view, RowTeam& team, float largest,
                                    const LogSum& log_sum) {
  Interval rest = view.interval();
  for (int64_t first = 0; first < top.count;) {
    const int64_t asked = top.count - first < kListCapacity ? top.count - first : kListCapacity;
    view.restrict_to(rest);
    view.keep_largest(static_cast<int>(asked));
    const int found = view.list_survivors();
    const bool last = found < asked;
    uint64_t lowest = 0;
    if (team.leads()) {
      const RowSmem& smem = team.smem();
      const SortedList list(smem.list, found, smem.sums, smem.reduce, largest, -1);
      top.write(list, first, last, log_sum);
      if (found > 0) lowest = list_entry(list.score(found - 1), list.token(found - 1));
    }
    lowest = team.from_leader(lowest);
    if (last) break;
    rest.high = score_of_entry(lowest);
    rest.after_id = token_of_entry(lowest);
    first += found;
  }
}

}  // namespace pygen::cuda
