// Asynchronous copies: when each happens, and that nobody uses their words meanwhile.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/report.h"
#include "runtime/scheduler.h"
#include "runtime/shared.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

constexpr unsigned kBytes = sizeof(uint4);

void complete(const Thread& self, const Copy& copy) {
  const uint4 value = copy.load_again(copy.from);
  if (std::memcmp(&value, &copy.value, kBytes) != 0)
    report("race", &self, copy.place, "the 16 bytes of global memory changed between this copy and the wait for it");
  if (copy.late) std::memcpy(self.block->shared + copy.byte, &value, kBytes);
  self.block->shadow.use(self, copy.byte, kBytes, Access::kCopied, copy.place);
}

}  // namespace

void issue_copy(const SharedArray& to, long long at, const void* from, const uint4& value, LoadAgain load_again) {
  const void* place = __builtin_return_address(0);
  Thread& self = current();
  if (to.block >= 0 && static_cast<unsigned>(to.block) != self.block->rank)
    fail("cluster", &self, place,
         "copies into the shared memory of block rank " + std::to_string(to.block) + ", not into its own block's");
  unsigned char* slot = touch_shared(to, at, kBytes, Access::kCopy, place);
  const bool late = random_word() % 2 == 0;
  if (!late) std::memcpy(slot, &value, kBytes);
  const unsigned byte = static_cast<unsigned>(slot - self.block->shared);
  self.copies.push_back({byte, self.closed_groups, late, from, value, load_again, place});
}

void close_copies() { ++current().closed_groups; }

void complete_copies(unsigned pending_groups) {
  Thread& self = current();
  std::vector<Copy>& copies = self.copies;
  const auto end = std::find_if(copies.begin(), copies.end(),
                                [&](const Copy& copy) { return copy.group + pending_groups >= self.closed_groups; });
  for (auto copy = copies.begin(); copy != end; ++copy) complete(self, *copy);
  copies.erase(copies.begin(), end);
}

}  // namespace pygen::cuda::host
