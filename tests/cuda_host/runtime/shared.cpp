// What stands between a kernel and the shared memory of its cluster.
#include "runtime/shared.h"

#include <algorithm>
#include <string>

#include "runtime/report.h"
#include "runtime/scheduler.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

std::string name_of(const SharedArray& array) {
  return "shared array " + std::to_string(array.number) + " of block rank " + std::to_string(array.block);
}

std::string stretch(long long at, unsigned bytes, const SharedArray& array) {
  return std::to_string(bytes) + " bytes at byte " + std::to_string(at) + " of the " +
         std::to_string(array.end - array.begin) + " of " + name_of(array);
}

const char* done_by(Access access) {
  switch (access) {
    case Access::kRead: return "reads";
    case Access::kWrite: return "writes";
    case Access::kAtomic: return "atomically updates";
    case Access::kPeek: return "peeks at";
    case Access::kCopy:
    case Access::kCopied: return "copies";
  }
  return "";
}

std::string race_text(const Fault& fault, const Thread& self, const std::string& what) {
  const bool itself = fault.by.last_block() == self.block->rank && fault.by.last_thread() == self.index;
  std::string text = what + "; ";
  text += itself ? "another thread"
                 : "thread " + std::to_string(fault.by.last_thread()) + " of block rank " +
                       std::to_string(fault.by.last_block());
  text += std::string(" ") + fault.did + " it";
  const std::string line = itself ? "" : source_line(fault.by.last_place());
  if (!line.empty()) text += " at " + line;
  return text + ", and no barrier lies between";
}

std::string pending_text(const Fault& fault, const std::string& what) {
  std::string text = what + ", where a copy of thread " + std::to_string(fault.by.last_thread()) + " is in flight";
  const std::string line = source_line(fault.by.last_place());
  return line.empty() ? text : text + " since " + line;
}

void note_remote(Block& owner, const Thread& self, const void* place) {
  const uint32_t arrivals = self.block->arrivals;
  if (self.cluster_waits == 0)
    report("cluster", &self, place,
           "uses the shared memory of block rank " + std::to_string(owner.rank) + " before the first cluster_sync");
  if (owner.remote_user != nullptr && owner.remote_arrivals > arrivals) return;
  owner.remote_user = &self;
  owner.remote_place = place;
  owner.remote_arrivals = arrivals;
}

}  // namespace

SharedArray take_shared(unsigned begin, unsigned long long bytes, int number) {
  const unsigned limit = running().launch.shared;
  if (begin + bytes > limit)
    fail("bounds", &current(), __builtin_return_address(0),
         "shared array " + std::to_string(number) + " ends at byte " + std::to_string(begin + bytes) +
             ", the launch asked for " + std::to_string(limit));
  return {static_cast<int>(current().block->rank), number, begin, begin + static_cast<unsigned>(bytes)};
}

SharedArray shared_of_block(const SharedArray& array, unsigned rank) {
  const unsigned blocks = running().launch.cluster;
  if (rank >= blocks)
    fail("cluster", &current(), __builtin_return_address(0),
         "asks for block rank " + std::to_string(rank) + " of a cluster of " + std::to_string(blocks));
  SharedArray other = array;
  other.block = static_cast<int>(rank);
  return other;
}

void* touch_shared(const SharedArray& array, long long at, unsigned bytes, Access access) {
  return touch_shared(array, at, bytes, access, __builtin_return_address(0));
}

unsigned char* touch_shared(const SharedArray& array, long long at, unsigned bytes, Access access, const void* place) {
  const Thread& self = current();
  if (array.block < 0) fail("bounds", &self, place, "uses a shared array that was not taken");
  if (at < 0 || at + bytes > array.end - array.begin)
    fail("bounds", &self, place, std::string(done_by(access)) + " " + stretch(at, bytes, array));
  const unsigned byte = array.begin + static_cast<unsigned>(at);
  const unsigned alignment = std::min(bytes & (~bytes + 1), 16u);
  if (byte % alignment != 0)
    fail("alignment", &self, place, std::string(done_by(access)) + " " + stretch(at, bytes, array));
  Block& owner = running().cluster.blocks[static_cast<size_t>(array.block)];
  if (&owner != self.block) note_remote(owner, self, place);
  if (const Fault fault = owner.shadow.use(self, byte, bytes, access, place)) {
    const std::string what = std::string(done_by(access)) + " " + stretch(at, bytes, array);
    if (fault.unwritten) report("unwritten", &self, place, what + ", which nobody wrote");
    if (fault.pending) report("pending", &self, place, pending_text(fault, what));
    if (fault.did != nullptr) report("race", &self, place, race_text(fault, self, what));
  }
  return owner.shared + byte;
}

}  // namespace pygen::cuda::host
