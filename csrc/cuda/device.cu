// Asks the CUDA runtime about a device and an error.
#include <cuda_runtime.h>

#include <mutex>
#include <vector>

#include "cuda/launchers.h"

namespace pygen::cuda {
namespace {

cudaError_t query(int ordinal, Device& device) {
  const struct {
    cudaDeviceAttr attribute;
    int* value;
  } wanted[] = {
      {cudaDevAttrComputeCapabilityMajor, &device.major},
      {cudaDevAttrComputeCapabilityMinor, &device.minor},
      {cudaDevAttrMultiProcessorCount, &device.multiprocessors},
      {cudaDevAttrMaxThreadsPerMultiProcessor, &device.threads_per_multiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &device.shared_per_block},
  };
  for (const auto& [attribute, value] : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(value, attribute, ordinal);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

const char* error_text(Error error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Asked once per device: an op without a prepared form would ask at every call.
Error device_of(int ordinal, Device& device) {
  static std::mutex mutex;
  static std::vector<Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (ordinal < 0) return cudaErrorInvalidDevice;
  if (static_cast<size_t>(ordinal) >= known.size()) known.resize(ordinal + 1);
  if (known[ordinal].multiprocessors == 0) {
    const cudaError_t error = query(ordinal, known[ordinal]);
    if (error != cudaSuccess) {
      known[ordinal] = Device{};
      return error;
    }
  }
  device = known[ordinal];
  return cudaSuccess;
}

}  // namespace pygen::cuda
