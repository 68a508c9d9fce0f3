// Asks the CUDA runtime about a device, its kernels and an error.
#include <cuda_runtime.h>

#include <mutex>
#include <vector>

#include "cuda/kernel_limits.h"

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

bool refuses_the_size(cudaError_t error) {
  return error == cudaErrorInvalidClusterSize || error == cudaErrorInvalidConfiguration ||
         error == cudaErrorInvalidValue || error == cudaErrorLaunchOutOfResources;
}

// An error that was handled must not appear at a later launch.
cudaError_t taken(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace

namespace ask {

Error current_device(int& ordinal) { return taken(cudaGetDevice(&ordinal)); }

Error clusters_at_once(Kernel kernel, unsigned cluster, unsigned threads, unsigned shared, int& clusters) {
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(cluster);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &size;
  config.numAttrs = 1;
  const cudaError_t error = taken(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  if (!refuses_the_size(error)) return error;
  clusters = 0;
  return cudaSuccess;
}

Error allow_shared(Kernel kernel, unsigned shared) {
  return taken(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
}

}  // namespace ask

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
