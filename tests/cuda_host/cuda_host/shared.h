// The shared memory of a block, every access watched: bounds, alignment, words never written, races.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda_host/atomics.h"
#include "cuda_host/functions.h"
#include "cuda_host/types.h"

namespace pygen::cuda {
namespace host {

// kPeek: a read that is meant to meet atomics of other threads. kCopy and kCopied: an asynchronous copy begins and ends.
enum class Access { kRead, kWrite, kAtomic, kPeek, kCopy, kCopied };

// What one `take` handed out; bytes count from the start of the block's shared memory.
struct SharedArray {
  int block = -1;  // rank in the cluster
  int number = 0;
  unsigned begin = 0;
  unsigned end = 0;
};

SharedArray take_shared(unsigned begin, unsigned long long bytes, int number);
SharedArray shared_of_block(const SharedArray& array, unsigned rank);
// Where the `bytes` at `at` bytes from the array's start lie, after every check.
void* touch_shared(const SharedArray& array, long long at, unsigned bytes, Access access);

}  // namespace host

template <typename T>
class Shared {
 public:
  Shared() = default;
  explicit Shared(const host::SharedArray& array, long long first = 0) : array_(array), first_(first) {}

  PYGEN_FORWARD T get(long long i) const { return *touch(i, host::Access::kRead); }
  PYGEN_FORWARD void set(long long i, T value) const { *touch(i, host::Access::kWrite) = value; }
  PYGEN_FORWARD T peek(long long i) const { return *touch(i, host::Access::kPeek); }
  PYGEN_FORWARD T add(long long i, T value) const {
    static_assert(sizeof(T) == 4 || std::is_unsigned_v<T>, "8 bytes are added as an unsigned number on the device");
    return change(i, [=](T old) { return host::wrapping_sum(old, value); });
  }
  PYGEN_FORWARD T bit_or(long long i, T value) const {
    return change(i, [=](T old) { return static_cast<T>(old | value); });
  }
  PYGEN_FORWARD T max(long long i, T value) const {
    static_assert(kComparable, "8 bytes are compared as an unsigned number on the device");
    return change(i, [=](T old) { return old < value ? value : old; });
  }
  PYGEN_FORWARD T min(long long i, T value) const {
    static_assert(kComparable, "8 bytes are compared as an unsigned number on the device");
    return change(i, [=](T old) { return value < old ? value : old; });
  }
  PYGEN_FORWARD T compare_and_swap(long long i, T expected, T value) const {
    static_assert(std::is_integral_v<T>);
    return change(i, [=](T old) { return old == expected ? value : old; });
  }
  PYGEN_FORWARD uint4 get_vector(long long i) const {
    return *static_cast<const uint4*>(touch_bytes(i, 16, host::Access::kRead));
  }
  PYGEN_FORWARD void set_vector(long long i, uint4 value) const {
    *static_cast<uint4*>(touch_bytes(i, 16, host::Access::kWrite)) = value;
  }
  PYGEN_FORWARD Shared from(long long offset) const { return Shared(array_, first_ + offset); }
  template <typename U>
  PYGEN_FORWARD Shared<U> as() const {
    return Shared<U>(array_, first_ * static_cast<long long>(sizeof(T)) / static_cast<long long>(sizeof(U)));
  }
  PYGEN_FORWARD Shared of_block(unsigned rank) const { return Shared(host::shared_of_block(array_, rank), first_); }

 private:
  template <typename U>
  friend void copy_async(const Shared<U>& to, long long i, const void* from);

  static constexpr bool kComparable = std::is_integral_v<T> && (sizeof(T) == 4 || std::is_unsigned_v<T>);

  PYGEN_FORWARD void* touch_bytes(long long i, unsigned bytes, host::Access access) const {
    return host::touch_shared(array_, (first_ + i) * static_cast<long long>(sizeof(T)), bytes, access);
  }
  PYGEN_FORWARD T* touch(long long i, host::Access access) const {
    return static_cast<T*>(touch_bytes(i, sizeof(T), access));
  }
  template <typename Change>
  PYGEN_FORWARD T change(long long i, const Change& formula) const {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics have 4 or 8 bytes");
    return host::atomically(touch(i, host::Access::kAtomic), formula);
  }

  host::SharedArray array_;
  long long first_ = 0;
};

class SharedMemory {
 public:
  template <typename T>
  PYGEN_FORWARD Shared<T> take(int count) {
    const unsigned long long bytes = static_cast<unsigned long long>(count) * sizeof(T);
    const host::SharedArray array = host::take_shared(next_, bytes, number_++);
    next_ += static_cast<unsigned>((bytes + 15) / 16 * 16);
    return Shared<T>(array);
  }

 private:
  unsigned next_ = 0;
  int number_ = 0;
};

}  // namespace pygen::cuda
