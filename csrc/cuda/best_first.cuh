// Sorting in shared memory, and the K best of many.
#pragma once

#include "cuda/reduce.cuh"

namespace pygen {

// Ascends with the value; both zeros have one key. Only a NaN has the key 0.
PYGEN_DEVICE uint64_t ordered_key(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));
  return (bits >> 63) != 0 ? ~bits : bits | 0x8000000000000000u;
}
PYGEN_DEVICE double value_of_key(uint64_t key) {
  const uint64_t bits = (key >> 63) != 0 ? key & 0x7FFFFFFFFFFFFFFFu : ~key;
  return __longlong_as_double(static_cast<long long>(bits));
}

namespace cuda {

PYGEN_HOST_DEVICE int power_of_two_from(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

// Entries of a key, an index and a score, the larger key first and among equals the lower index.
class Ranking {
 public:
  static constexpr int kBytesPerEntry = 16;

  // `capacity`: a power of two.
  PYGEN_DEVICE Ranking(SharedMemory& memory, int capacity)
      : keys_(memory.take<uint64_t>(capacity)),
        indices_(memory.take<uint32_t>(capacity)),
        scores_(memory.take<float>(capacity)) {}

  PYGEN_DEVICE uint64_t key(int i) const { return keys_.get(i); }
  PYGEN_DEVICE int index(int i) const { return static_cast<int>(indices_.get(i)); }
  PYGEN_DEVICE float score(int i) const { return scores_.get(i); }
  PYGEN_DEVICE void set(int i, uint64_t key, int index, float score) const {
    keys_.set(i, key);
    indices_.set(i, static_cast<uint32_t>(index));
    scores_.set(i, score);
  }
  PYGEN_DEVICE Ranking of_block(unsigned rank) const {
    return Ranking(keys_.of_block(rank), indices_.of_block(rank), scores_.of_block(rank));
  }

  // Sorts the first `count` entries and overwrites those behind them, up to a power of two. All threads of the block,
  // between barriers of its own.
  PYGEN_DEVICE void sort(int count) const {
    const int size = power_of_two_from(count);
    for (int i = count + thread_index(); i < size; i += kThreads) set(i, 0, -1, 0.0f);
    __syncthreads();
    // Batcher's bitonic network. A warp looks after 64 neighbours, so that short strides need no barrier of the block.
    for (int run = 2; run <= size; run *= 2) {
      for (int stride = run / 2; stride > 0; stride /= 2) {
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

 private:
  PYGEN_DEVICE Ranking(Shared<uint64_t> keys, Shared<uint32_t> indices, Shared<float> scores)
      : keys_(keys), indices_(indices), scores_(scores) {}

  PYGEN_DEVICE void exchange(int i, int j, bool best_first) const {
    const uint64_t key_i = keys_.get(i), key_j = keys_.get(j);
    const uint32_t index_i = indices_.get(i), index_j = indices_.get(j);
    const bool in_order = key_i != key_j ? key_i > key_j : index_i < index_j;
    if (in_order == best_first) return;
    const float score_i = scores_.get(i), score_j = scores_.get(j);
    set(i, key_j, static_cast<int>(index_j), score_j);
    set(j, key_i, static_cast<int>(index_i), score_i);
  }

  Shared<uint64_t> keys_;
  Shared<uint32_t> indices_;
  Shared<float> scores_;
};

// Entries of a BestOf: beside the wanted ones, one of every thread at least.
PYGEN_HOST_DEVICE int capacity_for(int wanted) { return power_of_two_from(wanted + wanted / 2 + kThreads); }

// The best `wanted` of entries that a block offers in any order. It keeps more until its array is full, and then
// drops the worse ones.
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
    return capacity_for(static_cast<int>(wanted)) * static_cast<size_t>(Ranking::kBytesPerEntry) + 16;
  }

  PYGEN_DEVICE const Ranking& ranking() const { return ranking_; }
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

  // Every thread offers kCount entries with indices from `first` on; key 0 means no entry. All threads of the block.
  template <int kCount>
  PYGEN_DEVICE void offer(const uint64_t (&keys)[kCount], int first, const float (&scores)[kCount]) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) count += may_enter(keys[i], first + i);
    const int before = size_.get(0);
    __syncthreads();
    int at = count > 0 ? size_.add(0, count) : 0;
    __syncthreads();
    if (size_.get(0) <= capacity_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (may_enter(keys[i], first + i)) ranking_.set(at++, keys[i], first + i, scores[i]);
      __syncthreads();
      return;
    }
    __syncthreads();
    if (thread_index() == 0) size_.set(0, before);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (size_.get(0) + kThreads > capacity_) keep_best();
      __syncthreads();
      if (may_enter(keys[i], first + i)) ranking_.set(size_.add(0, 1), keys[i], first + i, scores[i]);
      __syncthreads();
    }
  }

  // Sorts what came and returns how many there are, at most `wanted`.
  PYGEN_DEVICE int keep_best() {
    const int count = size_.get(0);
    ranking_.sort(count);
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
  Ranking ranking_;
  Shared<int> size_;
  int wanted_, capacity_;
  uint64_t bar_ = 0;
  int bar_index_ = -1;
};

}  // namespace cuda
}  // namespace pygen
