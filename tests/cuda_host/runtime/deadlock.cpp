#include "runtime/deadlock.h"

#include <string>
#include <vector>

#include "runtime/report.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

std::string whereabouts(const Thread& thread) {
  std::string text = "thread " + std::to_string(thread.index) + " of block " + std::to_string(thread.block->index);
  if (thread.returned) return text + " returned";
  text += std::string(" waits in ") + (thread.waits_in != nullptr ? thread.waits_in : "nothing");
  const std::string line = source_line(thread.place);
  return line.empty() ? text : text + " at " + line;
}

// `beginning`: of the name of the function.
bool waits_in(const Thread& thread, const char* beginning) {
  return thread.waits_in != nullptr && std::string(thread.waits_in).rfind(beginning, 0) == 0;
}

void report_waiting(const char* kind, const std::vector<const Thread*>& here, const Thread& missing, size_t wanted) {
  const Thread& first = *here.front();
  report(kind, &first, first.place,
         std::string(first.waits_in) + " was reached by " + std::to_string(here.size()) + " of " +
             std::to_string(wanted) + " threads; " + whereabouts(missing));
}

void report_block(const Block& block, unsigned threads) {
  if (block.barrier.arrived == 0) return;
  std::vector<const Thread*> here;
  const Thread* missing = nullptr;
  for (const Thread* thread = block.threads; thread != block.threads + threads; ++thread) {
    if (waits_in(*thread, "__syncthreads") || waits_in(*thread, "cluster_arrive")) {
      here.push_back(thread);
    } else if (missing == nullptr) {
      missing = thread;
    }
  }
  report_waiting("barrier", here, *missing, threads);
}

void report_cluster(const Cluster& cluster) {
  std::vector<const Thread*> here;
  const Thread* missing = nullptr;
  for (const Thread& thread : cluster.threads) {
    if (waits_in(thread, "cluster_wait")) here.push_back(&thread);
    const bool arrived = thread.block->arrivals > cluster.phases || waits_in(thread, "cluster_arrive");
    if (!arrived && missing == nullptr) missing = &thread;
  }
  if (here.empty()) return;
  report_waiting("barrier", here, *missing, cluster.threads.size());
}

void report_warp(const Warp& warp) {
  for (const Meeting& meeting : warp.meetings) {
    std::vector<const Thread*> here;
    const Thread* missing = nullptr;
    for (unsigned lane = 0; lane < warp.size; ++lane) {
      if ((meeting.arrived >> lane & 1u) != 0) {
        here.push_back(&warp.lanes[lane]);
      } else if ((meeting.mask >> lane & 1u) != 0 && missing == nullptr) {
        missing = &warp.lanes[lane];
      }
    }
    report_waiting("warp", here, *missing, static_cast<size_t>(__builtin_popcount(meeting.mask)));
  }
}

}  // namespace

void report_who_waits() {
  const Cluster& cluster = running().cluster;
  for (const Warp& warp : cluster.warps) report_warp(warp);
  for (const Block& block : cluster.blocks) report_block(block, cluster.threads_per_block);
  report_cluster(cluster);
}

}  // namespace pygen::cuda::host
