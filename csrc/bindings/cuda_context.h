// Device, stream and workspace of launches on a GPU.
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

// Those of one plan.
class CudaContext {
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

// set_device() of a plan that draws. Returns the bytes of workspace that its launches need.
template <typename Params>
size_t set_drawing_device(CudaContext& context, Params& params, int ordinal,
                          size_t (*workspace)(const Params&, const cuda::Device&)) {
  const cuda::Device& device = context.set_device(ordinal);
  set_torch_launch(params.torch_noise, params.shaping.rows * params.shaping.vocab_size, device.multiprocessors,
                   device.threads_per_multiprocessor);
  return workspace(params, device);
}

// The state of the generator: its two numbers, or where they are on the device.
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
