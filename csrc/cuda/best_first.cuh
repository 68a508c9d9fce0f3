// Sorting in shared memory, and the K best of many.
#pragma once

#include "cuda/cold.cuh"
#include "cuda/double_key.cuh"
#include "cuda/warp_sort.cuh"

namespace pygen::cuda {

PYGEN_HOST_DEVICE int power_of_two_from(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

// Entries of a key, an index and, where kScored, a score beside the key's value: the larger key first and among equals
// the lower index.
template <bool kScored>
class Ranking {
 public:
  static constexpr int kBytesPerEntry = kScored ? 16 : 12;
  // Warps sort up to kMaxSorted entries in registers and keep up to kMaxKept of them, in less than ten barriers.
  static constexpr int kMaxSorted = kThreads;
  static constexpr int kMaxKept = 4 * kWarp;

  // `capacity`: a power of two.
  PYGEN_DEVICE Ranking(SharedMemory& memory, int capacity)
      : keys_(memory.take<uint64_t>(capacity)),
        indices_(memory.take<uint32_t>(capacity)),
        scores_(memory.take<float>(kScored ? capacity : 0)) {}

  PYGEN_DEVICE uint64_t key(int i) const { return keys_.get(i); }
  PYGEN_DEVICE int index(int i) const { return static_cast<int>(indices_.get(i)); }
  PYGEN_DEVICE float score(int i) const {
    return kScored ? scores_.get(i) : static_cast<float>(value_of_key(keys_.get(i)));
  }
  PYGEN_DEVICE void set(int i, const RankedEntry& entry) const {
    keys_.set(i, entry.key);
    indices_.set(i, entry.index);
    if constexpr (kScored) scores_.set(i, entry.score);
  }
  PYGEN_DEVICE RankedEntry get(int i) const {
    RankedEntry entry;
    entry.key = keys_.get(i);
    entry.index = indices_.get(i);
    if constexpr (kScored) entry.score = scores_.get(i);
    return entry;
  }
  PYGEN_DEVICE Ranking of_block(unsigned rank) const {
    return Ranking(keys_.of_block(rank), indices_.of_block(rank), scores_.of_block(rank));
  }

  // The best `wanted` of the first `count` entries, in order, at the start; what follows them is lost, up to a power of
  // two from `count` and kWarp. All threads of the block, after a barrier; ends with one.
  PYGEN_DEVICE void sort(int count, int wanted) const {
    const bool by_warps = count <= kMaxSorted && wanted <= kMaxKept;
    sort_apart(*this, count, by_warps ? kMaxSorted : 0);
  }

  // Sorts every `group` of the first `count` entries, at most kMaxSorted, by itself, and keeps the best kMaxKept of it
  // at its start. `group`: kWarp or a power of two from kMaxKept on. Barriers as above.
  PYGEN_DEVICE void sort_groups(int count, int group) const { sort_apart(*this, count, group); }

 private:
  // Group 0: sorts all.
  PYGEN_COLD static void sort_apart(Ranking ranking, int count, int group) {
    if (group > 0) {
      ranking.sort_by_warps(count, group);
    } else {
      ranking.sort_all(count);
    }
  }

  PYGEN_DEVICE void sort_by_warps(int count, int group) const {
    const int run = warp_index() * kWarp, list = warp_index() * kMaxKept;
    if (run < count) sort_run(run, count);
    __syncthreads();
    if (group == kWarp || count <= kWarp) return;
    WarpEntries<kMaxKept / kWarp, kScored> entries;
    if (list < count) {
      const int end = (count + kWarp - 1) / kWarp * kWarp;  // of the last run
      entries.load([&](int i) { return list + i < end ? get(list + i) : RankedEntry(); });
      entries.merge_runs();
      __syncwarp();
      put(entries, list);
    }
    __syncthreads();
    for (int distance = kMaxKept; distance < group && distance < count; distance *= 2) {
      if (list % (2 * distance) == 0 && list + distance < count) {
        entries.merge_best([&](int i) { return get(list + distance + i); });
        __syncwarp();
        put(entries, list);
      }
      __syncthreads();
    }
  }

  PYGEN_DEVICE Ranking(Shared<uint64_t> keys, Shared<uint32_t> indices, Shared<float> scores)
      : keys_(keys), indices_(indices), scores_(scores) {}

  PYGEN_DEVICE void sort_run(int first, int count) const {
    WarpEntries<1, kScored> entries;
    entries.load([&](int i) { return first + i < count ? get(first + i) : RankedEntry(); });
    entries.sort_runs();
    __syncwarp();
    put(entries, first);
  }

  template <int kWords>
  PYGEN_DEVICE void put(const WarpEntries<kWords, kScored>& entries, int first) const {
    entries.store([&](int i, const RankedEntry& entry) { set(first + i, entry); });
  }

  // Batcher's bitonic network in shared memory. A warp looks after 64 neighbours, so that short strides need no barrier
  // of the block.
  PYGEN_DEVICE void sort_all(int count) const {
    const int size = power_of_two_from(count);
    for (int i = count + thread_index(); i < size; i += kThreads) set(i, RankedEntry());
    __syncthreads();
#pragma unroll 1
    for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
      for (int stride = run / 2; stride > 0; stride /= 2) {
#pragma unroll 1
        for (int pair = thread_index(); pair < size / 2; pair += kThreads) {
          const int i = 2 * pair - (pair & (stride - 1));
          exchange(i, i + stride, (i & run) == 0);
        }
        const int next = stride > 1 ? stride / 2 : run;
        if (stride > kWarp || next > kWarp) {
          __syncthreads();
        } else {
          __syncwarp();
        }
      }
    }
    __syncthreads();
  }

  PYGEN_DEVICE void exchange(int i, int j, bool best_first) const {
    const RankedEntry first = get(i), second = get(j);
    if (first.comes_before(second) == best_first) return;
    set(i, second);
    set(j, first);
  }

  Shared<uint64_t> keys_;
  Shared<uint32_t> indices_;
  Shared<float> scores_;
};

// Entries of a BestOf: beside the wanted ones, one of every thread at least.
PYGEN_HOST_DEVICE int capacity_for(int wanted) { return power_of_two_from(wanted + wanted / 2 + kThreads); }

// The best `wanted` of entries that a block offers in any order. It keeps more until its array is full, and then
// drops the worse ones.
template <bool kScored>
class BestOf {
 public:
  PYGEN_DEVICE BestOf(SharedMemory& memory, int wanted)
      : ranking_(memory, capacity_for(wanted)),
        size_(memory.take<int>(1)),
        wanted_(wanted),
        capacity_(capacity_for(wanted)) {
    if (thread_index() == 0) size_.set(0, 0);
    __syncthreads();
  }
  static size_t bytes(int64_t wanted) {
    return capacity_for(static_cast<int>(wanted)) * static_cast<size_t>(Ranking<kScored>::kBytesPerEntry) + 16;
  }

  PYGEN_DEVICE const Ranking<kScored>& ranking() const { return ranking_; }
  PYGEN_DEVICE const Shared<int>& size() const { return size_; }

  // Whether an entry may be among the best; a key of 0 never is.
  PYGEN_DEVICE bool may_enter(uint64_t key, int index) const {
    return key > bar_ || (key == bar_ && index < bar_index_);
  }
  // Lower keys are not wanted.
  PYGEN_DEVICE void raise_bar(uint64_t lowest) {
    bar_ = lowest - 1;
    bar_index_ = -1;
  }

  // Every thread offers kCount entries with indices from `first` on; key 0 means no entry. All threads of the block;
  // ends with a barrier.
  template <int kCount>
  PYGEN_DEVICE void offer(const uint64_t (&keys)[kCount], int first, const float (&scores)[kCount]) {
    uint32_t offered = 0;  // a bit each
#pragma unroll
    for (int i = 0; i < kCount; ++i) offered |= static_cast<uint32_t>(may_enter(keys[i], first + i)) << i;
    while (true) {
      int at = reserve(__popc(offered));
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if ((offered >> i & 1u) == 0) continue;
        if (at < capacity_) {
          RankedEntry entry;
          entry.key = keys[i];
          entry.index = static_cast<uint32_t>(first + i);
          entry.score = scores[i];
          ranking_.set(at, entry);
          offered ^= 1u << i;
        }
        ++at;
      }
      if (__syncthreads_or(offered != 0) == 0) return;
      keep_best();
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (!may_enter(keys[i], first + i)) offered &= ~(1u << i);
    }
  }

  // Sorts what came and returns how many there are, at most `wanted`.
  PYGEN_DEVICE int keep_best() {
    const int size = size_.get(0);
    const int count = size < capacity_ ? size : capacity_;
    ranking_.sort(count, wanted_);
    const int kept = count < wanted_ ? count : wanted_;
    if (count >= wanted_) {
      bar_ = ranking_.key(wanted_ - 1);
      bar_index_ = ranking_.index(wanted_ - 1);
    }
    if (thread_index() == 0) size_.set(0, kept);
    __syncthreads();
    return kept;
  }

 private:
  // Room for `count` entries of every lane; returns where the lane's begin. All lanes of a warp.
  PYGEN_DEVICE int reserve(int count) const {
    if (__ballot_sync(kAllLanes, count > 0) == 0) return 0;
    int end = count;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, distance);
      if (lane_index() >= distance) end += before;
    }
    int first = 0;
    if (lane_index() == kWarp - 1) first = size_.add(0, end);
    return __shfl_sync(kAllLanes, first, kWarp - 1) + end - count;
  }

  Ranking<kScored> ranking_;
  Shared<int> size_;
  int wanted_, capacity_;
  uint64_t bar_ = 0;
  int bar_index_ = -1;
};

}  // namespace pygen::cuda
