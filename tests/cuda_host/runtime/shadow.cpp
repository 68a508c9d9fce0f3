#include "runtime/shadow.h"

#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

// A write comes after everything before, so it alone is left to be ordered after.
void replace(Cell& cell, const Thread& thread, const void* place) {
  cell.written = true;
  cell.pending = false;
  cell.reads.clear();
  cell.peeks.clear();
  cell.atomics.clear();
  cell.writes.clear();
  cell.writes.add(thread, place);
}

Fault use_cell(Cell& cell, const Thread& thread, Access access, const void* place) {
  Fault fault;
  const auto check = [&](const Uses& uses, const char* did) {
    if (fault.did != nullptr || !uses.meets(thread)) return;
    fault.did = did;
    fault.by = uses;
  };
  if (access == Access::kCopied) {
    replace(cell, thread, place);
    return fault;
  }
  if (cell.pending) {
    fault.pending = true;
    fault.by = cell.writes;
    return fault;
  }
  const bool writes = access == Access::kWrite || access == Access::kCopy;
  fault.unwritten = !writes && !cell.written;
  check(cell.writes, "wrote");
  if (access == Access::kRead || writes) check(cell.atomics, "atomically updated");
  if (access == Access::kAtomic || writes) check(cell.reads, "read");
  if (writes) check(cell.peeks, "read");
  switch (access) {
    case Access::kRead: cell.reads.add(thread, place); break;
    case Access::kPeek: cell.peeks.add(thread, place); break;
    case Access::kAtomic: cell.atomics.add(thread, place); break;
    default: replace(cell, thread, place); cell.pending = access == Access::kCopy;
  }
  return fault;
}

}  // namespace

bool Uses::meets(const Thread& thread) const {
  if (scope_ == Scope::kNobody) return false;
  if (others_behind_ != 0 && arrivals_ - others_behind_ >= thread.cluster_waits) return true;
  if (scope_ == Scope::kCluster || block_ != thread.block->rank) return arrivals_ >= thread.cluster_waits;
  return meets_in_block(thread);
}

bool Uses::meets_in_block(const Thread& thread) const {
  if (block_epoch_ != thread.block->epoch) return false;
  if (scope_ == Scope::kBlock || warp_ != thread.warp->number) return true;
  for (uint32_t others = lanes_ & ~(1u << thread.lane); others != 0; others &= others - 1)
    if (time_ >= thread.warp->reach[thread.lane][static_cast<unsigned>(__builtin_ctz(others))]) return true;
  return false;
}

void Uses::begin(const Thread& thread) {
  scope_ = Scope::kWarp;
  arrivals_ = thread.block->arrivals;
  block_ = static_cast<uint8_t>(thread.block->rank);
  block_epoch_ = thread.block->epoch;
  warp_ = static_cast<uint16_t>(thread.warp->number);
  lanes_ = 0;
  others_behind_ = 0;
}

// What other blocks did before fewer arrivals stays beside what was done after more of them: between cluster_arrive and
// cluster_wait, a block may use words that others used before they arrived.
void Uses::add_to_other_blocks(const Thread& thread) {
  const uint32_t arrivals = thread.block->arrivals;
  if (arrivals_ < thread.cluster_waits) {
    begin(thread);
  } else if (arrivals_ == arrivals) {
    scope_ = Scope::kCluster;
  } else if (arrivals_ < arrivals) {
    const uint32_t behind = arrivals - arrivals_;
    begin(thread);
    others_behind_ = static_cast<uint8_t>(behind);
  } else {
    const auto behind = static_cast<uint8_t>(arrivals_ - arrivals);
    if (others_behind_ == 0 || behind < others_behind_) others_behind_ = behind;
  }
}

void Uses::add(const Thread& thread, const void* place) {
  if (scope_ == Scope::kNobody) {
    begin(thread);
  } else if (scope_ == Scope::kCluster || block_ != thread.block->rank) {
    add_to_other_blocks(thread);
    if (scope_ != Scope::kCluster && block_ != thread.block->rank) return;
  } else if (block_epoch_ != thread.block->epoch) {
    const uint32_t others = arrivals_ - others_behind_;
    const bool keep = others_behind_ != 0 && others >= thread.cluster_waits;
    begin(thread);
    if (keep) others_behind_ = static_cast<uint8_t>(arrivals_ - others);
  } else if (scope_ == Scope::kBlock || warp_ != thread.warp->number) {
    scope_ = Scope::kBlock;
  } else if (!meets_in_block(thread)) {
    lanes_ = 0;
  }
  if (scope_ == Scope::kWarp) {
    lanes_ |= 1u << thread.lane;
    time_ = thread.warp->time;
  }
  thread_ = static_cast<uint16_t>(thread.index);
  place_ = place;
  if (scope_ == Scope::kCluster) block_ = static_cast<uint8_t>(thread.block->rank);
}

void Shadow::reset(unsigned bytes) {
  const size_t words = (bytes + 3) / 4;
  if (cells_.size() < words) cells_.resize(words);
  pieces_.clear();
  ++generation_;
}

Cell& Shadow::cell(unsigned word) {
  Cell& found = cells_[word];
  if (found.generation != generation_) {
    found = Cell();
    found.generation = generation_;
  }
  return found;
}

std::array<Cell, 4>& Shadow::pieces_of(Cell& cell) {
  if (cell.pieces < 0) {
    cell.pieces = static_cast<int32_t>(pieces_.size());
    pieces_.push_back({cell, cell, cell, cell});
  }
  return pieces_[static_cast<size_t>(cell.pieces)];
}

Fault Shadow::use(const Thread& thread, unsigned at, unsigned bytes, Access access, const void* place) {
  Fault first;
  const auto note = [&](Cell& one) {
    const Fault fault = use_cell(one, thread, access, place);
    if (fault && !first) first = fault;
  };
  for (unsigned next = at; next < at + bytes;) {
    Cell& word = cell(next / 4);
    const unsigned end = at + bytes < next / 4 * 4 + 4 ? at + bytes : next / 4 * 4 + 4;
    if (word.pieces < 0 && next % 4 == 0 && end - next == 4) {
      note(word);
    } else {
      std::array<Cell, 4>& pieces = pieces_of(word);
      for (unsigned byte = next; byte < end; ++byte) note(pieces[byte % 4]);
    }
    next = end;
  }
  return first;
}

}  // namespace pygen::cuda::host
