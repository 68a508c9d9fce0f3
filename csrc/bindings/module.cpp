// The Python module pygen._C. This folder alone uses pybind11, and sees integers: pointers, sizes, strides in elements.
// pygen/ops checks every tensor before; this folder only refuses null pointers and negative sizes.
#include <pybind11/pybind11.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "bindings/bindings.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif
#include "common/sample_params.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

py::list split(const char* text) {
  py::list names;
  std::istringstream stream(text);
  for (std::string name; std::getline(stream, name, ',');) names.append(name);
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = PYGEN_VERSION;
  info["compiler"] = PYGEN_COMPILER;
  info["cpu_isas"] = split(PYGEN_CPU_ISAS);
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda"] = PYGEN_CUDA != 0;
  info["cuda_reason"] = PYGEN_CUDA_REASON;
  info["cuda_archs"] = split(PYGEN_CUDA_ARCHS);
  info["nvcc_version"] = PYGEN_NVCC_VERSION;
  return info;
}

// [(name, type, neutral value)] of common/knobs.def.
py::list knobs() {
  py::list knobs;
#define PYGEN_KNOB(type, name, neutral) \
  knobs.append(py::make_tuple(#name, std::is_same_v<type, float> ? "float" : "int", static_cast<type>(neutral)));
#include "common/knobs.def"
  return knobs;
}

}  // namespace

// Plans are local to the module: a second build of these kernels may be loaded beside it.
PYBIND11_MODULE(_C, m) {
  m.doc() = "pygen's compiled kernels. Private: a wrong pointer here is a crash. Use pygen.ops.";
  m.def("build_info", &build_info);
  m.def("knobs", &knobs);
  m.def("cpu_isa", [] { return std::string(pygen::cpu::implementation().name); });
  m.def("set_cpu_isa", &pygen::cpu::set_implementation, py::arg("name"));
  // Unlike torch.cuda.get_device_capability, it creates no context on the device.
  m.def("cuda_capability", [](int ordinal) -> py::tuple {
#if PYGEN_CUDA
    const pygen::cuda::Device device = pygen::bindings::device_of(ordinal);
    return py::make_tuple(device.major, device.minor);
#else
    throw std::runtime_error("cannot ask device " + std::to_string(ordinal) + ": built without CUDA kernels");
#endif
  });
  pygen::bindings::bind_sample(m);
  pygen::bindings::bind_process_logits(m);
  pygen::bindings::bind_beam_step(m);
  pygen::bindings::bind_reorder_cache(m);
  pygen::bindings::bind_beam_finalize(m);
  pygen::bindings::bind_token_logprobs(m);
  pygen::bindings::bind_verify_draft(m);
}
