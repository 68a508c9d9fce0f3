// What a device lets a kernel have: asked once per device, kernel and shape. All of it is about the current device, and
// may be called from any thread.
#pragma once

#include "cuda/launchers.h"

namespace pygen::cuda {

// The address of a `__global__` function.
using Kernel = const void*;

template <typename... Parameters>
Kernel address_of(void (*kernel)(Parameters...)) {
  return reinterpret_cast<Kernel>(kernel);
}

// How many clusters of `cluster` blocks run at once, each block with `threads` threads and `shared` bytes of dynamic
// shared memory; 0 where the device refuses this size, as a part of a partitioned GPU may.
int clusters_at_once(Kernel kernel, unsigned cluster, unsigned threads, unsigned shared);

// Lets launches of `kernel` have up to `shared` bytes of dynamic shared memory, and never fewer than before.
Error allow_shared(Kernel kernel, unsigned shared);

// The questions themselves: of the CUDA runtime in device.cu, of the host machine in tests/cuda_host.
namespace ask {

Error current_device(int& ordinal);
Error clusters_at_once(Kernel kernel, unsigned cluster, unsigned threads, unsigned shared, int& clusters);
// Replaces what was allowed before.
Error allow_shared(Kernel kernel, unsigned shared);

}  // namespace ask

}  // namespace pygen::cuda
