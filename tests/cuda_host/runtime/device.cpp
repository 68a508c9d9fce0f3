#include "runtime/device.h"

#include <atomic>
#include <mutex>
#include <thread>

#include "cuda_host/device.h"

namespace pygen::cuda {
namespace host {
namespace {

// Multiprocessors share what connects a cluster in groups of so many.
constexpr int kGroup = 16;

struct Gpu {
  Device device;
  int ordinal = 0;
  std::map<unsigned, int> clusters;
  std::map<Kernel, unsigned> shared;
  Asked asked;
};

std::mutex& mutex() {
  static std::mutex one;
  return one;
}

Gpu& gpu() {
  // An H100.
  static Gpu one{{9, 0, 132, 2048, 232448}, 0, {}, {}, {}};
  return one;
}

}  // namespace

const Device& current_device() { return gpu().device; }

void set_device(const Device& device) { gpu() = Gpu{device, gpu().ordinal + 1, {}, {}, {}}; }

void set_clusters(const std::map<unsigned, int>& clusters) {
  set_device(current_device());
  gpu().clusters = clusters;
}

Asked asked() {
  const std::lock_guard<std::mutex> lock(mutex());
  return gpu().asked;
}

int clusters_that_fit(unsigned cluster) {
  if (const auto set = gpu().clusters.find(cluster); set != gpu().clusters.end()) return set->second;
  const int all = gpu().device.multiprocessors, size = static_cast<int>(cluster);
  return all / kGroup * (kGroup / size) + all % kGroup / size;
}

unsigned allowed_shared(Kernel kernel) {
  const std::lock_guard<std::mutex> lock(mutex());
  const auto found = gpu().shared.find(kernel);
  return found == gpu().shared.end() ? 48 * 1024 : found->second;
}

int allow_in_threads(const std::vector<std::vector<unsigned>>& sizes) {
  static const char kernel = 0;
  std::atomic<int> refused{0};
  std::vector<std::thread> threads;
  for (const std::vector<unsigned>& of_thread : sizes)
    threads.emplace_back([&refused, &of_thread] {
      for (const unsigned size : of_thread)
        if (allow_shared(&kernel, size) != 0 || allowed_shared(&kernel) < size) ++refused;
    });
  for (std::thread& thread : threads) thread.join();
  return refused;
}

float half_to_float(uint16_t bits) {
  __extension__ using Half = _Float16;
  return static_cast<float>(same_bits<Half>(bits));
}

}  // namespace host

namespace ask {

Error current_device(int& ordinal) {
  ordinal = host::gpu().ordinal;
  return cudaSuccess;
}

Error clusters_at_once(Kernel kernel, unsigned cluster, unsigned, unsigned shared, int& clusters) {
  if (host::allowed_shared(kernel) < shared) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(host::mutex());
  ++host::gpu().asked.clusters;
  clusters = host::current_device().major < 9 ? 0 : host::clusters_that_fit(cluster);
  return cudaSuccess;
}

Error allow_shared(Kernel kernel, unsigned shared) {
  const std::lock_guard<std::mutex> lock(host::mutex());
  ++host::gpu().asked.shared;
  if (shared > static_cast<unsigned>(host::current_device().shared_per_block)) return cudaErrorInvalidValue;
  host::gpu().shared[kernel] = shared;
  return cudaSuccess;
}

}  // namespace ask

Error device_of(int, Device& device) {
  device = host::current_device();
  return cudaSuccess;
}

const char* error_text(Error error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNotSupported: return "operation not supported: this op was not built";
    case cudaErrorLaunchFailure: return "the host runtime reported failures of the kernel";
    case cudaErrorInvalidClusterSize: return "invalid cluster size";
    default: return "unrecognized error code";
  }
}

}  // namespace pygen::cuda
