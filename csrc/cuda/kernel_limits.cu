// Keeps what a device has answered about its kernels.
#include "cuda/kernel_limits.h"

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

namespace pygen::cuda {
namespace {

// Without an attribute no kernel has more.
constexpr unsigned kSharedWithoutAsking = 48 * 1024;

struct Answers {
  std::mutex mutex;
  std::map<std::pair<int, Kernel>, unsigned> shared;
  std::map<std::tuple<int, Kernel, unsigned, unsigned, unsigned>, int> clusters;
};

Answers& answers() {
  static Answers kept;
  return kept;
}

// The lock is held while the device is asked: of two threads, the one with the smaller size could come second.
Error allow_shared(Answers& kept, int device, Kernel kernel, unsigned shared) {
  if (shared <= kSharedWithoutAsking) return 0;
  unsigned& allowed = kept.shared[{device, kernel}];
  if (shared <= allowed) return 0;
  const Error error = ask::allow_shared(kernel, shared);
  if (error == 0) allowed = shared;
  return error;
}

}  // namespace

Error allow_shared(Kernel kernel, unsigned shared) {
  int device;
  if (const Error error = ask::current_device(device); error != 0) return error;
  Answers& kept = answers();
  const std::lock_guard<std::mutex> lock(kept.mutex);
  return allow_shared(kept, device, kernel, shared);
}

int clusters_at_once(Kernel kernel, unsigned cluster, unsigned threads, unsigned shared) {
  int device;
  if (ask::current_device(device) != 0) return 0;
  Answers& kept = answers();
  const std::lock_guard<std::mutex> lock(kept.mutex);
  const auto shape = std::make_tuple(device, kernel, cluster, threads, shared);
  if (const auto found = kept.clusters.find(shape); found != kept.clusters.end()) return found->second;
  int clusters = 0;
  // What failed is asked again: memory may be short only now.
  if (allow_shared(kept, device, kernel, shared) != 0) return 0;
  if (ask::clusters_at_once(kernel, cluster, threads, shared, clusters) != 0) return 0;
  kept.clusters[shape] = clusters;
  return clusters;
}

}  // namespace pygen::cuda
