// The blocks that share a row: a cluster, whose block of rank 0 leads, or one block.
#pragma once

#include "cuda/cold.cuh"
#include "cuda/row_scores.cuh"
#include "cuda/wide_sums.cuh"

namespace pygen::cuda {

constexpr int kListWords = 4 * kListCapacity;

// Of the slots, and where they are free for it, of the list and its sums.
PYGEN_HOST_DEVICE int slot_words(const Geometry& geometry) {
  const int words = geometry.slots * kWordsPerSweep;
  return geometry.resident || words > kListWords ? words : kListWords;
}

// Arrays in the shared memory of every block of the row, all taken in the same order. Those of constant size come
// first: their addresses need no register.
struct RowWords {
  Shared<uint64_t> reduce;    // kWarps
  Shared<uint64_t> board;     // kBoardWords: what blocks send each other
  Shared<uint32_t> counters;  // 2, of gather

  static constexpr int kMaxBlocks = 8;
  static constexpr int kBroadcastWords = 4;
  static constexpr int kBoardWords = 2 * kMaxBlocks + 2 * kBroadcastWords;

  PYGEN_DEVICE explicit RowWords(SharedMemory& shared)
      : reduce(shared.take<uint64_t>(kWarps)),
        board(shared.take<uint64_t>(kBoardWords)),
        counters(shared.take<uint32_t>(2)) {}
};

// Unless the slots of the scan hold the slice for a second look, they are where the list and its sums are later.
struct RowSmem : RowWords {
  Shared<uint32_t> slots;  // of the scan
  Shared<uint64_t> list;   // kListCapacity
  WideSums sums;           // kListCapacity: masses of the list, digits of a selection, tiles of a gathering

  PYGEN_DEVICE RowSmem(const RowWords& words, const Geometry& geometry, SharedMemory& shared) : RowWords(words) {
    slots = shared.take<uint32_t>(slot_words(geometry));
    set_list(geometry.resident ? shared.take<uint32_t>(kListWords) : slots);
  }
  // Without slots. `list_`: of an object that this one goes on for.
  PYGEN_DEVICE RowSmem(const RowWords& words, Shared<uint64_t> list_) : RowWords(words) {
    set_list(list_.as<uint32_t>());
  }

  static size_t bytes(const Geometry& geometry) {
    const int words = slot_words(geometry) + (geometry.resident ? kListWords : 0);
    return static_cast<size_t>(words) * 4 + kWarps * 8 + kBoardWords * 8 + 16;
  }

 private:
  PYGEN_DEVICE void set_list(Shared<uint32_t> words) {
    list = words.as<uint64_t>();
    sums = WideSums{words.from(2 * kListCapacity), words.from(3 * kListCapacity)};
  }
};

// Of a block among those that share its row; kAllSlices where other blocks have scanned it.
PYGEN_DEVICE int rank_in_row(const Geometry& geometry) {
  if (geometry.cluster > 1) return static_cast<int>(cluster_rank());
  return geometry.slices > 1 ? kAllSlices : 0;
}

// The barrier of a row as one piece of code, for where it matters little.
PYGEN_COLD void sync_blocks(int cluster) { row_sync(cluster); }

// What the blocks of a row do together. All their threads call, and all get the result.
class RowTeam {
 public:
  // `turn`: of a team that this one goes on for.
  PYGEN_DEVICE RowTeam(int cluster, const RowSmem& smem, int turn = 0) : cluster_(cluster), smem_(smem), turn_(turn) {}

  PYGEN_DEVICE int cluster() const { return cluster_; }
  PYGEN_DEVICE bool leads() const { return cluster_ == 1 || cluster_rank() == 0; }
  PYGEN_DEVICE void sync() const { sync_blocks(cluster_); }
  PYGEN_DEVICE const RowSmem& smem() const { return smem_; }
  PYGEN_DEVICE int turn() const { return turn_; }

  // A barrier of the row, too.
  template <typename Op>
  PYGEN_DEVICE uint64_t reduce(uint64_t value, const Op& op) {
    value = block_reduce(value, op, smem_.reduce);
    if (cluster_ == 1) return value;
    turn_ ^= 1;
    const int at = turn_ * RowSmem::kMaxBlocks;
    if (thread_index() < cluster_) smem_.board.of_block(threadIdx.x).set(at + static_cast<int>(cluster_rank()), value);
    sync();
    value = smem_.board.get(at);
#pragma unroll 1
    for (int i = 1; i < cluster_; ++i) value = op(value, smem_.board.get(at + i));
    return value;
  }

  // Replaces the values by the leader's. A barrier, too.
  // `kInline`: the barrier is part of the caller's code.
  template <bool kInline = false, int kCount>
  PYGEN_DEVICE void take_from_leader(uint64_t (&values)[kCount]) {
    static_assert(kCount <= RowSmem::kBroadcastWords);
    turn_ ^= 1;
    const int at = 2 * RowSmem::kMaxBlocks + turn_ * RowSmem::kBroadcastWords;
    if (leads() && thread_index() < cluster_) {
      const Shared<uint64_t> board = cluster_ == 1 ? smem_.board : smem_.board.of_block(threadIdx.x);
#pragma unroll
      for (int i = 0; i < kCount; ++i) board.set(at + i, values[i]);
    }
    if constexpr (kInline) {
      row_sync(cluster_);
    } else {
      sync();
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = smem_.board.get(at + i);
  }
  PYGEN_DEVICE uint64_t from_leader(uint64_t value) {
    uint64_t values[1] = {value};
    take_from_leader(values);
    return values[0];
  }

 private:
  int cluster_;
  RowSmem smem_;
  int turn_;  // two boards in turn: a late block may still read the one before
};

}  // namespace pygen::cuda
