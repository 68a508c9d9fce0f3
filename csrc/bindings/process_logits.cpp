#include <pybind11/stl.h>
#include <algorithm>
#include <optional>
#include <stdexcept>

#include "bindings/bindings.h"
#include "bindings/shaping.h"
#include "common/sample_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

class ProcessPlan {
 public:
  explicit ProcessPlan(const py::kwargs& kwargs) {
    Arguments arguments(kwargs);
    params_.shaping = take_shaping(arguments);
    arguments.finish();
  }

  void run(uintptr_t logits, int64_t logits_stride, int64_t, int64_t length, uintptr_t out, int64_t out_stride) const {
    process(params_of_call(logits, logits_stride, length, out, out_stride));
  }

  // With the call's tables.
  void run_with(uintptr_t logits, int64_t logits_stride, int threads, const std::optional<Tables>& tables,
                uintptr_t out, int64_t out_stride) const {
    ProcessParams params = params_of_call(logits, logits_stride, 0, out, out_stride);
    set_tables(params.shaping, tables);
    params.shaping.threads = std::max(1, threads);
    process(params);
  }

#if PYGEN_CUDA
  size_t set_device(int ordinal) { return cuda::process_logits_workspace(params_, context_.set_device(ordinal)); }
  void set_workspace(uintptr_t address) { context_.set_workspace(address); }

  void launch_on(uintptr_t stream, uintptr_t logits, int64_t logits_stride, int64_t length, uintptr_t out,
                 int64_t out_stride) const {
    const ProcessParams params = params_of_call(logits, logits_stride, length, out, out_stride);
    check_launch(cuda::process_logits(params, context_.on_stream(stream)));
  }
#endif

 private:
  ProcessParams params_of_call(uintptr_t logits, int64_t logits_stride, int64_t length, uintptr_t out,
                               int64_t out_stride) const {
    ProcessParams params = params_;
    set_call(params.shaping, logits, logits_stride, length);
    params.out = pointer<float>(out);
    params.out_stride = out_stride;
    return params;
  }
  static void process(const ProcessParams& params) {
    if (params.out == nullptr && params.shaping.rows > 0) throw std::invalid_argument("out is a null pointer");
    launch(cpu::implementation().process_logits, params);
  }

  ProcessParams params_;
#if PYGEN_CUDA
  CudaContext context_;
#endif
};

}  // namespace

void bind_process_logits(py::module_& m) {
  py::class_<ProcessPlan> plan(m, "ProcessPlan", py::module_local());
  plan.def(py::init<const py::kwargs&>()).def("run", &ProcessPlan::run).def("run_with", &ProcessPlan::run_with);
#if PYGEN_CUDA
  def_launches(plan);
#endif
}

}  // namespace pygen::bindings
