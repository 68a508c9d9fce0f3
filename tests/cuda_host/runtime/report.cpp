#include "runtime/report.h"

#include <cstring>
#include <map>
#include <sstream>
#include <tuple>

#include "runtime/scheduler.h"
#include "runtime/state.h"

extern "C" __attribute__((weak)) void __sanitizer_symbolize_pc(void* pc, const char* format, char* out, size_t size);

namespace pygen::cuda::host {
namespace {

constexpr size_t kMost = 64;

struct Collected {
  std::vector<Failure> failures;
  std::map<std::tuple<std::string, const void*, const void*>, size_t> at;
  const void* kernel = nullptr;
  unsigned long of_launch = 0;
};

Collected& collected() {
  static Collected all;
  return all;
}

// Of inlined calls one text per frame, the innermost first.
std::vector<std::string> symbols(const void* pc, const char* format) {
  char text[4096] = {};
  std::vector<std::string> frames;
  if (__sanitizer_symbolize_pc == nullptr || pc == nullptr) return frames;
  __sanitizer_symbolize_pc(const_cast<void*>(pc), format, text, sizeof(text) - 1);
  for (const char* next = text; *next != '\0'; next += std::strlen(next) + 1) frames.emplace_back(next);
  return frames;
}

std::string kernel_name(const void* kernel) {
  // A return address is expected, so one inside of the function.
  const std::vector<std::string> frames = symbols(static_cast<const char*>(kernel) + 1, "%f");
  if (!frames.empty()) return frames.back();
  std::ostringstream address;
  address << kernel;
  return address.str();
}

}  // namespace

std::string source_line(const void* place) {
  for (const std::string& frame : symbols(place, "%s:%l"))
    if (frame.find("cuda_host/cuda_host/") == std::string::npos) return frame;
  return "";
}

void begin_reports(const void* kernel) {
  collected().kernel = kernel;
  collected().of_launch = 0;
}

unsigned long reports_of_launch() { return collected().of_launch; }

void report(const char* kind, const Thread* thread, const void* place, const std::string& text) {
  Collected& all = collected();
  ++all.of_launch;
  const auto key = std::make_tuple(std::string(kind), all.kernel, place);
  const auto found = all.at.find(key);
  if (found != all.at.end()) {
    ++all.failures[found->second].count;
    return;
  }
  if (all.failures.size() >= kMost) return;
  all.at[key] = all.failures.size();
  Failure failure;
  failure.kind = kind;
  failure.kernel = kernel_name(all.kernel);
  failure.text = text;
  failure.where = source_line(place);
  if (thread != nullptr) {
    failure.block = thread->block->index;
    failure.thread = thread->index;
  }
  all.failures.push_back(failure);
}

void fail(const char* kind, const Thread* thread, const void* place, const std::string& text) {
  report(kind, thread, place, text);
  give_up();
}

std::vector<Failure> take_reports() {
  std::vector<Failure> failures;
  failures.swap(collected().failures);
  collected().at.clear();
  return failures;
}

}  // namespace pygen::cuda::host
