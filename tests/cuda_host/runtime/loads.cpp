#include "runtime/loads.h"

#include <cstring>
#include <map>
#include <vector>

#include "runtime/report.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

struct Watched {
  const unsigned char* begin = nullptr;
  size_t bytes = 0;
  LoadCount count;
  std::vector<unsigned char> before;
};

std::map<std::string, Watched>& all_watched() {
  static std::map<std::string, Watched> all;
  return all;
}

}  // namespace

void watch(const std::string& name, const void* begin, size_t bytes) {
  all_watched()[name] = {static_cast<const unsigned char*>(begin), bytes, {}, {}};
}

void forget_watched() { all_watched().clear(); }

LoadCount count_of(const std::string& name) { return all_watched().at(name).count; }

void begin_watching() {
  for (auto& [name, watched] : all_watched()) watched.before.assign(watched.begin, watched.begin + watched.bytes);
}

void check_watched() {
  for (const auto& [name, watched] : all_watched()) {
    if (watched.bytes == 0 || std::memcmp(watched.before.data(), watched.begin, watched.bytes) == 0) continue;
    size_t at = 0;
    while (watched.before[at] == watched.begin[at]) ++at;
    report("store", nullptr, nullptr, "the kernel wrote to byte " + std::to_string(at) + " of `" + name + "`");
  }
}

void note_load(const void* p, unsigned bytes) {
  const void* place = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    fail("alignment", &current(), place, "loads " + std::to_string(bytes) + " bytes from an address between two");
  for (auto& [name, watched] : all_watched()) {
    if (p < watched.begin || p >= watched.begin + watched.bytes) continue;
    ++watched.count.loads;
    watched.count.bytes += bytes;
    if (running().launch.dependent && !current().waited_for_previous)
      report("dependent", &current(), place, "loads `" + name + "` before wait_for_previous_kernel");
  }
}

}  // namespace pygen::cuda::host
