// The largest scores of a row, sorted, in the shared memory of one block. Survivors are a range of the list, so most
// filters are a search in it or in the running sums of the masses.
#pragma once

#include "common/filters.h"
#include "cuda/masses.cuh"
#include "cuda/row_scores.cuh"
#include "cuda/wide_sums.cuh"

namespace pygen::cuda {

// Up to here a list is sorted by counting for every entry the larger ones. 128 entries are 32 comparisons for each of
// the block's 512 threads and two barriers; the bitonic network of 256 takes 36 barriers.
constexpr int kRankedDirectly = 128;

// The relative error of the sum of the tiles' masses beside the list's, at most. Of a tile: up to 64 float32 additions
// behind three of pairs (4.0e-6), a rescaled sum per vector of which few are not exact (2.4e-6), 2 ulp of 2^x (2e-7), and
// three roundings of an exponent, which matters down to -16 (2.9e-6). The list's scores are rounded quotients: 6e-8 each
// of a score and of the largest.
PYGEN_DEVICE double tile_mass_error(float largest) { return 1.1e-5 + 1.3e-7 * fabs(static_cast<double>(largest)); }

// Survivors: scores from `high`, with ids above after_id up to until_id, down to `low`, with ids from first_id to
// last_id.
struct Interval {
  float low = -kInfinity, high = kInfinity;
  int first_id = 0, last_id = 0x7FFFFFFF;
  int after_id = -1, until_id = 0x7FFFFFFF;

  PYGEN_DEVICE bool keeps(float score, int id) const {
    return score > -kInfinity && (score > low || (score == low && id >= first_id && id <= last_id)) &&
           (score < high || (score == high && id > after_id && id <= until_id));
  }
  // Keeps the limits of ids where `low` stays.
  PYGEN_DEVICE void raise_low(float score) {
    if (!(score > low)) return;
    low = score;
    first_id = 0;
    last_id = 0x7FFFFFFF;
  }
};

// Sorts downwards; the entries of a list are distinct. All threads of the block; has barriers before and after.
PYGEN_DEVICE void sort_list(Shared<uint64_t> list, int count) {
  __syncthreads();
  if (count <= kRankedDirectly) {
    constexpr int kShare = kThreads / kRankedDirectly;
    const int i = thread_index() / kShare;
    const uint64_t own = i < count ? list.get(i) : 0;
    int rank = 0;
    if (i < count)
#pragma unroll 2
      for (int j = thread_index() % kShare; j < count; j += kShare) rank += list.get(j) > own;
    rank = warp_reduce(rank, Add{}, kShare);
    __syncthreads();
    if (i < count && thread_index() % kShare == 0) list.set(rank, own);
    __syncthreads();
    return;
  }
  int size = 2 * kRankedDirectly;
  while (size < count) size *= 2;
#pragma unroll 1
  for (int i = count + thread_index(); i < size; i += kThreads) list.set(i, 0);
  __syncthreads();
#pragma unroll 1
  for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int distance = run / 2; distance > 0; distance /= 2) {
#pragma unroll 1
      for (int i = thread_index(); i < size / 2; i += kThreads) {
        const int a = 2 * i - (i & (distance - 1)), b = a + distance;
        const uint64_t first = list.get(a), second = list.get(b);
        if ((first < second) == ((a & run) == 0)) {
          list.set(a, second);
          list.set(b, first);
        }
      }
      __syncthreads();
    }
  }
}

// The running sums of the masses of a sorted list. All threads of the block; a barrier behind.
PYGEN_DEVICE void sum_masses(Shared<uint64_t> list, int count, WideSums masses, Shared<uint64_t> smem, float largest) {
  uint64_t before = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += kThreads) {
    const int i = first + thread_index();
    const uint64_t own = i < count ? mass_of(score_of_entry(list.get(i)), largest) : uint64_t{0};
    const RunningSum sum = block_inclusive_sum(own, smem);
    if (i < count) masses.set(i, before + sum.here);
    before += sum.all;
  }
  __syncthreads();
}

PYGEN_COLD void sort_and_sum(Shared<uint64_t> list, int count, WideSums masses, Shared<uint64_t> smem, float largest) {
  sort_list(list, count);
  sum_masses(list, count, masses, smem, largest);
}

// A view of common/filters.h, shared by the threads of one block.
class SortedList {
 public:
  // `list`: `count` entries in any order, of kListCapacity; `masses`: as many sums; `smem` as in block_reduce.
  // `largest`: the row's largest score over the temperature. `total`: about the mass of the whole row, in units, where
  // the list may lack some of it; negative where the list holds all that counts.
  PYGEN_DEVICE SortedList(Shared<uint64_t> list, int count, const WideSums& masses, Shared<uint64_t> smem,
                          float largest, double total)
      : list_(list), masses_(masses), smem_(smem), end_(count), largest_(largest), total_(total) {
    sort_and_sum(list, count, masses, smem, largest);
  }

  // The survivors are entries [begin, end), largest first, the lower id first where scores tie.
  PYGEN_DEVICE Shared<uint64_t> entries() const { return list_; }
  PYGEN_DEVICE int begin() const { return begin_; }
  PYGEN_DEVICE int end() const { return end_; }
  PYGEN_DEVICE float score(int i) const { return score_of_entry(list_.get(i)); }
  PYGEN_DEVICE int token(int i) const { return token_of_entry(list_.get(i)); }
  PYGEN_DEVICE Interval interval() const {
    const float low = score(end_ - 1);
    return {low, score(begin_), low == split_ ? first_id_ : 0, token(end_ - 1), token(begin_) - 1, until_id_};
  }
  PYGEN_DEVICE uint64_t mass() const { return mass_of_range(begin_, end_); }

  // The first survivor at which the survivors' mass reaches the target; end() where it does not.
  PYGEN_DEVICE int first_to_reach(uint64_t target) const {
    return first_to_reach(masses_, begin_, end_, mass_before(begin_), target);
  }

  // Of the survivors that tie with one, the one that is as far from the last of them as that is from the first.
  PYGEN_DEVICE int mirrored_in_ties(int at) const {
    const float tied = score(at);
    const int first = first_below(tied, true);
    return first + first_below(tied) - 1 - at;
  }

  PYGEN_DEVICE void keep_largest(int n) { end_ = n < end_ - begin_ ? begin_ + n : end_; }
  PYGEN_DEVICE void keep_largest_and_ties(int n) {
    if (n < end_ - begin_) keep_at_least(score(begin_ + n - 1));
  }
  PYGEN_DEVICE bool holds_at_least(float low, int n) const { return first_below(low) - begin_ >= n; }
  PYGEN_DEVICE void keep_at_least(float low) { end_ = first_below(low); }

  PYGEN_DEVICE void keep_top_h(float top_h) {
    constexpr double kUnits = 0x1p56;  // of sums up to 100
    keep_largest(kTopHTokens);
    const int i = thread_index();
    const double below = i < end_ ? static_cast<double>(score(i)) - score(0) : 0;
    const uint64_t weight = i < end_ ? static_cast<uint64_t>(exp(below) * kUnits) : 0;
    const double log_prob = below - ln(static_cast<double>(block_reduce(weight, Add{}, smem_)) / kUnits);
    const double term = i < end_ ? fabs(exp(log_prob) * log_prob) : 0;
    // Relative to the largest term: beside a certain token all terms may be tiny.
    const auto bits = static_cast<uint64_t>(__double_as_longlong(term));
    const double largest_term = __longlong_as_double(static_cast<long long>(block_reduce(bits, Larger{}, smem_)));
    const uint64_t share = largest_term > 0 ? static_cast<uint64_t>(term / largest_term * kUnits) : 0;
    const RunningSum entropy = block_inclusive_sum(share, smem_);
    const double max_entropy = static_cast<double>(top_h) * static_cast<double>(entropy.all);
    const int kept = block_count(i < end_ && static_cast<double>(entropy.here) <= max_entropy, smem_);
    end_ = kept > 0 ? kept : 1;
  }

  PYGEN_DEVICE bool keep_nucleus(float p, int n) {
    const bool partial = total_ >= 0;
    const double total = partial ? total_ : static_cast<double>(mass());
    const double error = partial ? tile_mass_error(largest_) : 0.0;
    const int last = first_to_reach(share_of(p, total * (1 - error)));
    if (partial && (last == end_ || first_to_reach(share_of(p, total * (1 + error))) != last)) return false;
    const int kept = last - begin_ + 1;
    keep_largest_with_highest_ids(kept > n ? kept : n);
    return true;
  }

  PYGEN_DEVICE double standard_deviation() const {
    const double range = static_cast<double>(largest_) - score(end_ - 1);
    if (range == 0) return 0;
    uint64_t depth = 0, squared = 0;
    for (int i = begin_ + thread_index(); i < end_; i += kThreads) {
      depth += depth_of(score(i), largest_, range);
      squared += squared_depth_of(score(i), largest_, range);
    }
    depth = block_reduce(depth, Add{}, smem_);
    squared = block_reduce(squared, Add{}, smem_);
    return standard_deviation_of(static_cast<uint64_t>(end_ - begin_), depth, squared, range);
  }

  PYGEN_DEVICE Distribution distribution() const {
    uint64_t energy = 0;
    for (int i = begin_ + thread_index(); i < end_; i += kThreads) energy += energy_of(score(i), largest_);
    return distribution_of(mass(), block_reduce(energy, Add{}, smem_));
  }

  // The survivors not further from `center` than some distance are a range; the least distance whose range suffices is
  // that of an entry.
  PYGEN_DEVICE void keep_typical(float center, float p, int n) {
    const uint64_t target = share_of(p, static_cast<double>(mass()));
    const uint64_t none = bits_of(kInfinity);
    uint64_t for_mass = none, for_count = none;
    for (int i = begin_ + thread_index(); i < end_; i += kThreads) {
      const float distance = fabsf(score(i) - center);
      const int first = first_within(center, distance), last = first_beyond(center, distance);
      const uint64_t bits = bits_of(distance);
      if (mass_of_range(first, last) >= target && bits < for_mass) for_mass = bits;
      if (last - first >= n && bits < for_count) for_count = bits;
    }
    for_mass = block_reduce(for_mass, Smaller{}, smem_);
    for_count = block_reduce(for_count, Smaller{}, smem_);
    const float distance = float_of(static_cast<uint32_t>(for_mass > for_count ? for_mass : for_count));
    const int first = first_within(center, distance);
    end_ = first_beyond(center, distance);
    begin_ = first;
    if (for_count > for_mass && end_ - begin_ > n) drop_outermost(center, distance, end_ - begin_ - n);
  }

 private:
  // The first survivor for which `holds`, which is false up to some index and true from there on; end_ without one.
  template <typename Holds>
  PYGEN_DEVICE int first_where(const Holds& holds) const {
    return first_from(begin_, end_, holds);
  }
  // Likewise among entries [low, high).
  template <typename Holds>
  PYGEN_DEVICE static int first_from(int low, int high, const Holds& holds) {
    while (low < high) {
      const int middle = (low + high) / 2;
      if (holds(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
  // `or_equal`: the first that is not above.
  PYGEN_DEVICE int first_below(float low, bool or_equal = false) const {
    return first_below(list_, begin_, end_, low, or_equal);
  }
  PYGEN_COLD static int first_below(Shared<uint64_t> list, int begin, int end, float low, bool or_equal) {
    return first_from(begin, end, [&](int i) {
      const float score = score_of_entry(list.get(i));
      return score < low || (or_equal && score == low);
    });
  }
  PYGEN_COLD static int first_to_reach(WideSums masses, int begin, int end, uint64_t before, uint64_t target) {
    return first_from(begin, end, [&](int i) { return masses.get(i) - before >= target; });
  }
  PYGEN_DEVICE int first_within(float center, float distance) const {
    return first_where([&](int i) { return score(i) - center <= distance; });
  }
  PYGEN_DEVICE int first_beyond(float center, float distance) const {
    return first_where([&](int i) { return center - score(i) > distance; });
  }
  // Moves entry from + sign * i to entry to + sign * i, for i from 0 to count - 1 in this order. The others are lost.
  PYGEN_COLD static void move(Shared<uint64_t> list, int from, int to, int count, int sign) {
#pragma unroll 1
    for (int done = 0; done < count; done += kThreads) {
      const int i = done + thread_index();
      const uint64_t entry = i < count ? list.get(from + sign * i) : 0;
      __syncthreads();
      if (i < count) list.set(to + sign * i, entry);
      __syncthreads();
    }
  }
  // Of entries [begin, end), whose scores are equal, those with the `count` highest ids come first.
  PYGEN_DEVICE void bring_highest_ids_forward(int begin, int end, int count) {
    move(list_, end - count, begin, count, 1);
  }
  // Likewise, those with the `count` lowest ids come last.
  PYGEN_DEVICE void bring_lowest_ids_back(int begin, int end, int count) {
    move(list_, begin + count - 1, end - 1, count, -1);
  }

  PYGEN_DEVICE void keep_largest_with_highest_ids(int n) {
    if (n >= end_ - begin_) return;
    const int end = begin_ + n;
    const float last = score(end - 1);
    if (score(end) == last) {
      const int first_tied = first_below(last, true);
      bring_highest_ids_forward(first_tied, first_below(last), end - first_tied);
      split_ = last;
      first_id_ = token(first_tied);
    }
    end_ = end;
  }

  // Removes `excess` of the two outermost scores, the highest ids of both, where they are this far from `center`.
  PYGEN_DEVICE void drop_outermost(float center, float distance, int excess) {
    const float high = score(begin_), low = score(end_ - 1);
    int above = begin_, below = end_;  // the high ones end here, the low ones begin
    if (high - center == distance && high != low) above = first_below(high);
    if (center - low == distance || high == low) below = first_below(low, true);
    const int kept = (above - begin_) + (end_ - below) - excess;
    if (kept < 0) return;
    const auto high_ids_below = [&](int id) {
      return first_from(begin_, above, [&](int i) { return token(i) >= id; }) - begin_;
    };
    const int end = first_from(below, end_, [&](int i) { return i - below + high_ids_below(token(i)) >= kept; });
    end_ = end;
    const int kept_high = kept - (end - below);
    if (kept_high == above - begin_) return;
    if (kept_high > 0) {
      until_id_ = token(begin_ + kept_high - 1);
      bring_lowest_ids_back(begin_, above, kept_high);
    }
    begin_ = above - kept_high;
  }

  PYGEN_DEVICE uint64_t mass_before(int i) const { return i > 0 ? masses_.get(i - 1) : 0; }
  PYGEN_DEVICE uint64_t mass_of_range(int begin, int end) const { return mass_before(end) - mass_before(begin); }

  Shared<uint64_t> list_;
  WideSums masses_;
  Shared<uint64_t> smem_;
  int begin_ = 0, end_;
  // Where survivors were split by their ids: of the score `split_` from first_id_ on, of the largest up to until_id_.
  float split_ = kInfinity;
  int first_id_ = 0, until_id_ = 0x7FFFFFFF;
  float largest_;
  double total_;
};

}  // namespace pygen::cuda
