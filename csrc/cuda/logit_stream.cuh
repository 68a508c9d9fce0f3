// The vectors of a slice, sweep by sweep, through shared memory. Every thread copies its own vectors into slots of its
// own, kDepth sweeps ahead of the one that it reads. So no barrier is needed, and a block has kDepth * 16 bytes a
// thread in flight.
#pragma once

#include "cuda/row_layout.cuh"

namespace pygen::cuda {

constexpr int kWordsPerSweep = kThreads * 4;

template <DType kType>
class LogitStream {
 public:
  // `memory`: the slots.
  PYGEN_DEVICE LogitStream(const Geometry& geometry, Shared<uint32_t> memory)
      : memory_(memory), resident_(geometry.resident) {}

  // Starts the copies of the first sweeps.
  PYGEN_DEVICE void start(const RowLayout<kType>& layout) {
    read_from_memory_ = true;
    const int first = layout.first_vector();
    read_ = write_ = thread_index() * 4;
    from_ = layout.address_of(first + thread_index());
    // In vectors from the first full one of the slice: it ends where the row or the slice does.
    const int begin = max(layout.first_full(), first);
    const int end = min(layout.last_full(), layout.last_vector());
    vector_ = first + thread_index() - begin;
    count_ = static_cast<unsigned>(max(end - begin, 0));
#pragma unroll
    for (int i = 0; i < kDepth; ++i) copy(i, i);
    if (resident_) write_ += kDepth * kWordsPerSweep;
  }

  // The stream goes in rounds of kDepth sweeps: for each of them wait(), is_full(i), vector(i) and copy_next(i), at last
  // end_round().
  PYGEN_DEVICE void wait() const { wait_for_copies<kDepth - 1>(); }
  PYGEN_DEVICE bool is_full(int i) const { return static_cast<unsigned>(vector_ + i * kThreads) < count_; }
  PYGEN_DEVICE uint4 vector(int i) const { return memory_.get_vector(read_ + i * kWordsPerSweep); }
  PYGEN_DEVICE void copy_next(int i) const { copy(i + kDepth, i); }
  PYGEN_DEVICE void end_round() {
    vector_ += kDepth * kThreads;
    from_ += kDepth * kThreads * 16;
    if (resident_) {
      read_ += kDepth * kWordsPerSweep;
      write_ += kDepth * kWordsPerSweep;
    }
  }

  // Whether the slots hold the slice for a second look: once all of it was read, and for an object that goes on.
  PYGEN_DEVICE bool holds_slice() const { return resident_ && read_from_memory_; }
  PYGEN_DEVICE void resume() { read_from_memory_ = true; }
  // Of the slice of a block.
  PYGEN_DEVICE uint4 again(unsigned rank, int vector_in_slice) const {
    return memory_.of_block(rank).get_vector(vector_in_slice * 4);
  }

 private:
  PYGEN_DEVICE void copy(int sweep, int slot) const {
    if (is_full(sweep)) copy_async(memory_, write_ + slot * kWordsPerSweep, from_ + sweep * (kThreads * 16));
    commit_copies();
  }

  Shared<uint32_t> memory_;
  bool resident_;
  bool read_from_memory_ = false;
  int vector_ = 0;      // of the round's first sweep
  unsigned count_ = 0;  // full vectors of the slice
  int read_ = 0, write_ = 0;
  const char* from_ = nullptr;
};

}  // namespace pygen::cuda
