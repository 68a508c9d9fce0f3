// Sorting in the registers of one warp: Batcher's bitonic network with shuffles and no barrier.
#pragma once

#include "cuda/reduce.cuh"

namespace pygen::cuda {

// The larger key comes first, and among equals the lower index. Key 0 with the highest index: no entry.
struct RankedEntry {
  uint64_t key = 0;
  uint32_t index = 0xFFFFFFFFu;
  float score = 0.0f;  // travels along where kScored

  PYGEN_DEVICE bool comes_before(const RankedEntry& other) const {
    return key != other.key ? key > other.key : index < other.index;
  }
};

// 32 * kWords entries, of which [32 * i + lane] is the lane's i-th. All lanes of the warp.
template <int kWords, bool kScored>
class WarpEntries {
 public:
  static constexpr int kSize = kWords * kWarp;

  // get(i): entry i.
  template <typename Get>
  PYGEN_DEVICE void load(const Get& get) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) entries_[i] = get(i * kWarp + lane_index());
  }
  template <typename Set>
  PYGEN_DEVICE void store(const Set& set) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) set(i * kWarp + lane_index(), entries_[i]);
  }

  // Sorts every 32 entries for themselves.
  PYGEN_DEVICE void sort_runs() {
#pragma unroll 1
    for (int run = 2; run <= kWarp; run *= 2) {
#pragma unroll 1
      for (int mask = run - 1; mask > 0; mask = mask == run - 1 ? run / 4 : mask / 2) exchange_lanes(mask);
    }
  }

  // Sorts 128 entries, of which every 32 are sorted.
  PYGEN_DEVICE void merge_runs() {
    static_assert(kWords == 4);
    exchange_mirrored<1>();
    settle_runs();
    exchange_mirrored<3>();
    exchange_words<1>();
    settle_runs();
  }

  // Of these entries and as many others, both sorted, keeps the first half; get(i): the others' entry i.
  template <typename Get>
  PYGEN_DEVICE void merge_best(const Get& get) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const RankedEntry other = get(kSize - 1 - (i * kWarp + lane_index()));
      if (other.comes_before(entries_[i])) entries_[i] = other;
    }
    if constexpr (kWords > 2) exchange_words<2>();
    if constexpr (kWords > 1) exchange_words<1>();
    settle_runs();
  }

 private:
  // Sorts every 32 entries that a network left bitonic.
  PYGEN_DEVICE void settle_runs() {
#pragma unroll 1
    for (int mask = kWarp / 2; mask > 0; mask /= 2) exchange_lanes(mask);
  }

  // Brings entry and partner in order, the better one to the lower lane.
  PYGEN_DEVICE void exchange_lanes(int mask) {
    const bool is_lower = (lane_index() ^ mask) > lane_index();
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const RankedEntry other = shuffled(entries_[i], mask);
      if (other.comes_before(entries_[i]) == is_lower) entries_[i] = other;
    }
  }

  // Likewise entries of one lane.
  template <int kDistance>
  PYGEN_DEVICE void exchange_words() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if ((i & kDistance) != 0 || !entries_[i ^ kDistance].comes_before(entries_[i])) continue;
      const RankedEntry lower = entries_[i];
      entries_[i] = entries_[i ^ kDistance];
      entries_[i ^ kDistance] = lower;
    }
  }

  // Entry i with the one as far from the end of its 32 * (kMask + 1) entries.
  template <int kMask>
  PYGEN_DEVICE void exchange_mirrored() {
    RankedEntry others[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) others[i] = shuffled(entries_[i ^ kMask], kWarp - 1);
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      if (others[i].comes_before(entries_[i]) == (i < (i ^ kMask))) entries_[i] = others[i];
  }

  PYGEN_DEVICE static RankedEntry shuffled(const RankedEntry& entry, int mask) {
    RankedEntry other;
    other.key = shuffle_xor(entry.key, mask);
    other.index = shuffle_xor(entry.index, mask);
    if constexpr (kScored) other.score = shuffle_xor(entry.score, mask);
    return other;
  }

  RankedEntry entries_[kWords];
};

}  // namespace pygen::cuda
