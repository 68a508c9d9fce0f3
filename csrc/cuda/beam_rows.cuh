// Which row of the model's batch each beam of a prompt goes on in, by a block.
//
// The first child of a beam stays in its row. Every other one takes, of the rows whose beam left no child, the one that
// has most in common with its parent's.
#pragma once

#include <climits>

#include "common/beam_params.h"
#include "cuda/reduce.cuh"

namespace pygen::cuda {

// Entries of a prompt's table of shared positions that shared memory holds: all of them, up to 128 beams, or none.
PYGEN_HOST_DEVICE int64_t staged_shared(int64_t num_beams) { return num_beams <= 128 ? num_beams * num_beams : 0; }

class BeamRows {
 public:
  PYGEN_DEVICE BeamRows(const BeamParams& params, int64_t prompt, SharedMemory& memory)
      : n_(static_cast<int>(params.num_beams)),
        shared_(params.shared + prompt * params.num_beams * params.num_beams),
        slots_(params.slots + prompt * params.num_beams),
        first_(prompt * params.num_beams),
        is_staged_(staged_shared(params.num_beams) > 0),
        staged_(memory.take<int>(static_cast<int>(staged_shared(params.num_beams)))),
        slot_(memory.take<int>(n_)),
        source_(memory.take<int>(n_)),
        row_(memory.take<int>(n_)),
        owner_(memory.take<int>(n_)),
        origin_(memory.take<int>(n_)),
        common_(memory.take<int>(n_)),
        movers_(memory.take<int>(n_)),
        mover_sources_(memory.take<int>(n_)),
        targets_(memory.take<int>(n_)),
        num_movers_(memory.take<int>(1)) {}
  static size_t bytes(const BeamParams& params) {
    return staged_shared(params.num_beams) * 4 + params.num_beams * 9 * 4 + 11 * 16;
  }

  // Reads what the choice needs, before anything is known of the new beams; no kernel in front writes it. A barrier
  // has to follow.
  PYGEN_DEVICE void prepare(int64_t step) const {
#pragma unroll 1
    for (int r = thread_index(); r < n_; r += kThreads) {
      slot_.set(r, static_cast<int>(slots_[r] - first_));
      owner_.set(r, INT_MAX);
      origin_.set(r, r);
      common_.set(r, static_cast<int>(step));
    }
    if (!is_staged_) return;
#pragma unroll 8
    for (int i = thread_index(); i < n_ * n_; i += kThreads) staged_.set(i, shared_[i]);
  }

  // By one warp. parent_of(j): the rank of the beam that new beam j continues.
  template <typename ParentOf>
  PYGEN_DEVICE void choose(int64_t step, const ParentOf& parent_of) const {
#pragma unroll 1
    for (int j = lane_index(); j < n_; j += kWarp) {
      const int source = slot_.get(parent_of(j));
      source_.set(j, source);
      owner_.min(source, j);
    }
    __syncwarp();
    const int movers = list_movers();
    if (lane_index() == 0) num_movers_.set(0, movers);
    if (n_ <= kMaxInRegisters && step < kMaxStepInRegisters) {
      choose_in_registers(movers);
    } else {
      for (int i = 0; i < movers; ++i) choose_row(i);
    }
#pragma unroll 1
    for (int i = lane_index(); i < movers; i += kWarp) {
      const int target = targets_.get(i), source = mover_sources_.get(i);
      row_.set(movers_.get(i), target);
      origin_.set(target, source);
      common_.set(target, shared(source, target));
    }
  }

  // The rest is for all threads, after a barrier.
  PYGEN_DEVICE int row(int j) const { return row_.get(j); }
  // By row: that its history comes from, and how many generated positions it had in common with it.
  PYGEN_DEVICE int origin(int r) const { return origin_.get(r); }
  PYGEN_DEVICE int common(int r) const { return common_.get(r); }
  PYGEN_DEVICE int movers() const { return num_movers_.get(0); }
  PYGEN_DEVICE int target(int mover) const { return targets_.get(mover); }

  // A row that moved has in common with others what its source had, and with its source everything.
  PYGEN_DEVICE void mix_shared(int64_t step) const {
#pragma unroll 1
    for (int i = thread_index(); i < movers() * n_; i += kThreads) {
      const int mover = i / n_, r = i - mover * n_;
      const int to = target(mover);
      const int source = origin(to), other = origin(r);
      const int common = r == to ? 0 : other == source ? static_cast<int>(step) : shared(source, other);
      shared_[static_cast<int64_t>(to) * n_ + r] = common;
      shared_[static_cast<int64_t>(r) * n_ + to] = common;
    }
  }

 private:
  static constexpr int kLog2MaxInRegisters = 6;
  static constexpr int kMaxInRegisters = 1 << kLog2MaxInRegisters;           // beams; two a lane
  static constexpr int64_t kMaxStepInRegisters = INT_MAX / kMaxInRegisters;  // one number has to hold position and row

  PYGEN_DEVICE int shared(int a, int b) const {
    return is_staged_ ? staged_.get(a * n_ + b) : shared_[static_cast<int64_t>(a) * n_ + b];
  }

  // First children take their rows. Returns how many others there are, best first.
  PYGEN_DEVICE int list_movers() const {
    int movers = 0;
#pragma unroll 1
    for (int first = 0; first < n_; first += kWarp) {
      const int j = first + lane_index();
      const int source = j < n_ ? source_.get(j) : 0;
      const bool moves = j < n_ && owner_.get(source) != j;
      const unsigned mask = __ballot_sync(kAllLanes, moves);
      if (moves) {
        const int at = movers + __popc(mask & ((1u << lane_index()) - 1));
        movers_.set(at, j);
        mover_sources_.set(at, source);
      } else if (j < n_) {
        row_.set(j, source);
      }
      movers += __popc(mask);
    }
    __syncwarp();
    return movers;
  }

  // One mover after the other, since what a beam takes is gone for the next. A lane has two rows, and one number ranks
  // a row: what is in common, then the lower row. The table is read one turn ahead, the mover's source two turns ahead.
  PYGEN_DEVICE void choose_in_registers(int movers) const {
    constexpr int kLast = kMaxInRegisters - 1;
    const int low = lane_index(), high = low + kWarp;
    const auto source_of = [&](int i) { return i < movers ? mover_sources_.get(i) : 0; };
    const auto common_with = [&](int source, int r) { return r < n_ ? staged_.get(source * n_ + r) : 0; };
    // All bits of a row that is not free, none of one that is.
    int low_taken = low < n_ && owner_.get(low) == INT_MAX ? 0 : -1;
    int high_taken = high < n_ && owner_.get(high) == INT_MAX ? 0 : -1;
    int next_source = source_of(1);
    int low_common = common_with(source_of(0), low), high_common = common_with(source_of(0), high);
#pragma unroll 1
    for (int i = 0; i < movers; ++i) {
      const int low_number = (low_common << kLog2MaxInRegisters) + (kLast - low);
      const int high_number = (high_common << kLog2MaxInRegisters) + (kLast - high);
      const int source_after_next = source_of(i + 2);
      low_common = common_with(next_source, low);
      high_common = common_with(next_source, high);
      const int best = __reduce_max_sync(kAllLanes, max(low_number | low_taken, high_number | high_taken));
      const int target = kLast - (best & kLast);
      if (low == target) low_taken = -1;
      if (high == target) high_taken = -1;
      if (low == 0) targets_.set(i, target);
      next_source = source_after_next;
    }
    __syncwarp();
  }

  PYGEN_DEVICE void choose_row(int mover) const {
    const int source = mover_sources_.get(mover);
    int best = -1, row = INT_MAX;
#pragma unroll 1
    for (int r = lane_index(); r < n_; r += kWarp) {
      if (owner_.get(r) != INT_MAX) continue;
      const int common = shared(source, r);
      if (common <= best) continue;
      best = common;
      row = r;
    }
    const int max_common = __reduce_max_sync(kAllLanes, best);
    const int target = __reduce_min_sync(kAllLanes, best == max_common ? row : INT_MAX);
    __syncwarp();
    if (lane_index() == 0) {
      owner_.set(target, movers_.get(mover));
      targets_.set(mover, target);
    }
    __syncwarp();
  }

  const int n_;
  int32_t* const shared_;       // of the prompt
  const int64_t* const slots_;  // likewise
  const int64_t first_;         // row of the prompt
  const bool is_staged_;
  const Shared<int> staged_;
  const Shared<int> slot_;           // by old beam: its row
  const Shared<int> source_;         // by new beam: the row of its parent
  const Shared<int> row_;            // by new beam: its own row
  const Shared<int> owner_;          // by row: the first child of its beam, or INT_MAX
  const Shared<int> origin_;         // by row: the row that its history comes from
  const Shared<int> common_;         // by row: how many generated positions it had in common with that
  const Shared<int> movers_;         // beams that take another row than their parent's
  const Shared<int> mover_sources_;  // their parents' rows
  const Shared<int> targets_;        // the rows that they take
  const Shared<int> num_movers_;
};

}  // namespace pygen::cuda
