#include "runtime/previous.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

// Null where AddressSanitizer is not in the process.
extern "C" {
__attribute__((weak)) const char* __asan_locate_address(void* address, char* name, size_t name_size, void** begin,
                                                        size_t* bytes);
__attribute__((weak)) void* __asan_region_is_poisoned(void* begin, size_t bytes);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* begin, size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* begin, size_t bytes);
__attribute__((weak)) void __asan_set_error_report_callback(void (*callback)(const char* text));
}

namespace pygen::cuda::host {
namespace {

// What AddressSanitizer hides one by one.
constexpr size_t kGranule = 8;

using Stretch = std::pair<unsigned char*, size_t>;

struct Writes {
  // Blocks of the heap, with their bytes before the launch.
  std::map<unsigned char*, std::vector<unsigned char>> before;
  std::vector<Stretch> written;
  std::vector<Stretch> hidden;
};

Writes& writes() {
  static Writes all;
  return all;
}

void keep_heap_block(void* address) {
  char name[1];
  void* begin = nullptr;
  size_t bytes = 0;
  const char* kind = __asan_locate_address(address, name, sizeof(name), &begin, &bytes);
  if (std::strcmp(kind, "heap") != 0 || bytes == 0 || __asan_region_is_poisoned(begin, bytes) != nullptr) return;
  auto* const first = static_cast<unsigned char*>(begin);
  writes().before.try_emplace(first, first, first + bytes);
}

void add_written(unsigned char* granule, size_t bytes) {
  std::vector<Stretch>& written = writes().written;
  if (!written.empty() && written.back().first + written.back().second == granule) {
    written.back().second += bytes;
  } else {
    written.emplace_back(granule, bytes);
  }
}

void add_changes(unsigned char* begin, const std::vector<unsigned char>& before) {
  constexpr size_t kPage = 512 * kGranule;
  for (size_t page = 0; page < before.size(); page += kPage) {
    const size_t end = std::min(page + kPage, before.size());
    if (std::memcmp(begin + page, &before[page], end - page) == 0) continue;
    for (size_t at = page; at < end; at += kGranule) {
      const size_t bytes = std::min(kGranule, end - at);
      if (std::memcmp(begin + at, &before[at], bytes) != 0) add_written(begin + at, bytes);
    }
  }
}

void explain(const char* text) {
  if (writes().hidden.empty() || std::strstr(text, "use-after-poison") == nullptr) return;
  std::fputs("dependent: the kernel used, before wait_for_previous_kernel, what a kernel in front wrote\n", stderr);
}

}  // namespace

void begin_writes(const void* parameters, size_t bytes, bool dependent) {
  Writes& all = writes();
  all.before.clear();
  // A kernel in front that was itself dependent may have let this one start before its own wait.
  if (!dependent) all.written.clear();
  if (__asan_locate_address == nullptr) return;
  for (size_t at = 0; at + sizeof(void*) <= bytes; at += sizeof(void*)) {
    void* address = nullptr;
    std::memcpy(&address, static_cast<const unsigned char*>(parameters) + at, sizeof(address));
    constexpr uintptr_t kFirst = 1u << 16;
    constexpr uintptr_t kEnd = uintptr_t{1} << 47;
    if (reinterpret_cast<uintptr_t>(address) >= kFirst && reinterpret_cast<uintptr_t>(address) < kEnd)
      keep_heap_block(address);
  }
}

void end_writes() {
  for (const auto& [begin, before] : writes().before) add_changes(begin, before);
}

void hide_previous_writes() {
  Writes& all = writes();
  if (__asan_poison_memory_region == nullptr) return;
  __asan_set_error_report_callback(explain);
  for (const auto& [begin, bytes] : all.written) {
    // What the caller freed meanwhile is no longer a block that a parameter points to.
    const auto block = all.before.upper_bound(begin);
    if (block == all.before.begin()) continue;
    const auto& [first, before] = *std::prev(block);
    if (begin + bytes > first + before.size()) continue;
    __asan_poison_memory_region(begin, bytes);
    all.hidden.emplace_back(begin, bytes);
  }
}

void show_previous_writes() {
  for (const auto& [begin, bytes] : writes().hidden) __asan_unpoison_memory_region(begin, bytes);
  writes().hidden.clear();
}

}  // namespace pygen::cuda::host
