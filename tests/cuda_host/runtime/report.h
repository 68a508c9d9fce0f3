// What went wrong, collected until somebody asks.
#pragma once

#include <string>
#include <vector>

namespace pygen::cuda::host {

struct Thread;

struct Failure {
  // launch, barrier, warp, mask, bounds, alignment, unwritten, pending, race, cluster, dependent, store
  std::string kind;
  std::string kernel;
  long long block = -1;  // in the grid; -1: the launch as a whole
  long long thread = -1;
  std::string text;
  std::string where;        // file:line in the kernel, where known
  unsigned long count = 1;  // how often at this place
};

// The place is the return address of what the kernel called, or null. Only the first of a kind at a place is kept.
void report(const char* kind, const Thread* thread, const void* place, const std::string& text);
// For what leaves no way to go on: the launch ends here.
[[noreturn]] void fail(const char* kind, const Thread* thread, const void* place, const std::string& text);

void begin_reports(const void* kernel);
// Failures since begin_reports.
unsigned long reports_of_launch();
std::vector<Failure> take_reports();

// file:line of the innermost frame outside of this runtime; empty where unknown.
std::string source_line(const void* place);

}  // namespace pygen::cuda::host
