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
  const Cluster& cluster = running().cluster;
  if (scope_ == Scope::kNobody || cluster_epoch_ != cluster.epoch) return false;
  if (scope_ == Scope::kCluster || block_ != thread.block->rank) return true;
  if (block_epoch_ != thread.block->epoch) return false;
  if (scope_ == Scope::kBlock || warp_ != thread.warp->number) return true;
  for (uint32_t others = lanes_ & ~(1u << thread.lane); others != 0; others &= others - 1)
    if (time_ >= thread.warp->reach[thread.lane][static_cast<unsigned>(__builtin_ctz(others))]) return true;
  return false;
}

void Uses::begin(const Thread& thread) {
  scope_ = Scope::kWarp;
  cluster_epoch_ = running().cluster.epoch;
  block_ = static_cast<uint8_t>(thread.block->rank);
  block_epoch_ = thread.block->epoch;
  warp_ = static_cast<uint16_t>(thread.warp->number);
  lanes_ = 0;
}

void Uses::add(const Thread& thread, const void* place) {
  const bool current_epoch = scope_ != Scope::kNobody && cluster_epoch_ == running().cluster.epoch;
  if (!current_epoch) {
    begin(thread);
  } else if (scope_ == Scope::kCluster || block_ != thread.block->rank) {
    scope_ = Scope::kCluster;
  } else if (block_epoch_ != thread.block->epoch) {
    begin(thread);
  } else if (scope_ == Scope::kBlock || warp_ != thread.warp->number) {
    scope_ = Scope::kBlock;
  } else if (!meets(thread)) {
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
