// Where a launch on a GPU runs.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "bindings/arguments.h"
#include "common/sample_params.h"
#include "cuda/launchers.h"

namespace pygen::bindings {

inline void check_launch(cuda::Error error) {
  if (error != 0) throw std::runtime_error(cuda::error_text(error));
}

inline cuda::Device device_of(int ordinal) {
  cuda::Device device;
  check_launch(cuda::device_of(ordinal, device));
  return device;
}

// Device, stream and workspace of a plan's launches.
class CudaPlace {
 public:
  const cuda::Device& set_device(int ordinal) { return context_.device = device_of(ordinal); }
  void set_workspace(uintptr_t address) { context_.workspace = pointer<void>(address); }
  cuda::Context on_stream(uintptr_t stream) const {
    cuda::Context context = context_;
    context.stream = pointer<CUstream_st>(stream);
    return context;
  }

 private:
  cuda::Context context_;
};

inline void set_torch_noise(TorchCudaNoise& noise, const ShapingParams& shaping, const cuda::Device& device) {
  set_torch_launch(noise, shaping.rows * shaping.vocab_size, device.multiprocessors, device.threads_per_multiprocessor);
}

// Where the generator stands: its two numbers, or their place on the device.
inline void set_generator(TorchCudaNoise& noise, uint64_t seed, uint64_t offset, uintptr_t generator) {
  noise.seed = seed;
  noise.offset = offset;
  noise.generator = pointer<uint64_t>(generator);
}

// What the ops on a GPU call: the bytes of workspace for a device, the workspace, and the launch.
template <typename Plan>
py::class_<Plan>& def_launches(py::class_<Plan>& plan) {
  plan.def("set_device", &Plan::set_device).def("set_workspace", &Plan::set_workspace);
  return plan.def("launch_on", &Plan::launch_on);
}

}  // namespace pygen::bindings
