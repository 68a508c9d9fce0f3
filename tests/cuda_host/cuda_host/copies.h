// Asynchronous copies from global to shared memory, in flight until the wait that covers them.
#pragma once

#include "cuda_host/launch.h"
#include "cuda_host/shared.h"
#include "cuda_host/types.h"

namespace pygen::cuda {
namespace host {

// Loads the 16 bytes once more in code that AddressSanitizer instruments, unlike the runtime's.
inline uint4 load_again(const void* from) {
  uint4 value;
  __builtin_memcpy(&value, from, 16);
  return value;
}

using LoadAgain = uint4 (*)(const void* from);
// `value`: what `from` holds at the issue.
void issue_copy(const SharedArray& to, long long at, const void* from, const uint4& value, LoadAgain load_again);
void close_copies();
void complete_copies(unsigned pending_groups);

}  // namespace host

template <typename T>
PYGEN_FORWARD void copy_async(const Shared<T>& to, long long i, const void* from) {
  const uint4 value = load_vector(from);
  host::issue_copy(to.array_, (to.first_ + i) * static_cast<long long>(sizeof(T)), from, value, host::load_again);
}

PYGEN_FORWARD void commit_copies() { host::close_copies(); }

template <int kPending>
PYGEN_FORWARD void wait_for_copies() {
  static_assert(kPending >= 0, "all but the newest kPending groups");
  host::complete_copies(kPending);
}

}  // namespace pygen::cuda
