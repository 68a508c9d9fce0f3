// The Python module pygen._C. This folder alone uses pybind11, and sees integers: pointers, sizes, strides in elements.
// pygen/ops checks every tensor before; this folder only refuses null pointers and negative sizes.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>
#include <type_traits>

#include "bindings/bindings.h"
#include "common/sample_params.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::list isas;
  std::istringstream names(PYGEN_CPU_ISAS);
  for (std::string name; std::getline(names, name, ',');) isas.append(name);
  py::dict info;
  info["version"] = PYGEN_VERSION;
  info["compiler"] = PYGEN_COMPILER;
  info["cpu_isas"] = isas;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda"] = PYGEN_CUDA != 0;
  info["cuda_reason"] = PYGEN_CUDA_REASON;
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
  pygen::bindings::bind_sample(m);
  pygen::bindings::bind_process_logits(m);
  pygen::bindings::bind_beam_step(m);
  pygen::bindings::bind_reorder_cache(m);
  pygen::bindings::bind_beam_finalize(m);
  pygen::bindings::bind_token_logprobs(m);
  pygen::bindings::bind_verify_draft(m);
}
