#include <algorithm>
#include <stdexcept>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/shaping.h"
#include "common/draft_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

DraftParams draft_params(Arguments arguments) {
  DraftParams params;
  params.rows = arguments.take<int64_t>("rows");
  params.vocab_size = arguments.take<int64_t>("vocab_size");
  params.num_drafts = arguments.take<int64_t>("num_drafts");
  params.target_dtype = static_cast<DType>(arguments.take<int>("target_dtype"));
  params.target = arguments.take_pointer<void>("target_ptr");
  params.target_row_stride = arguments.take<int64_t>("target_row_stride");
  params.target_position_stride = arguments.take<int64_t>("target_position_stride");
  params.draft_dtype = static_cast<DType>(arguments.take<int>("draft_dtype"));
  params.draft = arguments.take_pointer<void>("draft_ptr");
  params.draft_row_stride = arguments.take<int64_t>("draft_row_stride");
  params.draft_position_stride = arguments.take<int64_t>("draft_position_stride");
  params.draft_ids = arguments.take_pointer<int64_t>("draft_ids_ptr");
  params.draft_ids_stride = arguments.take<int64_t>("draft_ids_stride");
  params.lengths = arguments.take_knob<int64_t>("lengths");
  params.temperature = arguments.take_knob<float>("temperature");
  params.rng = static_cast<Rng>(arguments.take<int>("rng"));
  params.step = {arguments.take<int64_t>("step"), arguments.take_pointer<int64_t>("steps_ptr")};
  params.seeds = arguments.take_pointer<int64_t>("seeds_ptr");
  params.uniforms = arguments.take_pointer<float>("uniforms_ptr");
  params.noise = arguments.take_pointer<float>("noise_ptr");
  params.noise_stride = arguments.take<int64_t>("noise_stride");
  params.accepted = arguments.take_pointer<int64_t>("accepted_ptr");
  params.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
  params.status = arguments.take_pointer<int32_t>("status_ptr");
  arguments.finish();
  if (params.rows < 0 || params.vocab_size < 1 || params.num_drafts < 0)
    throw std::invalid_argument("a size is negative");
  if (params.rows > 0) {
    if (params.target == nullptr || params.accepted == nullptr || params.token_ids == nullptr ||
        params.status == nullptr)
      throw std::invalid_argument("target, accepted, token_ids or status is a null pointer");
    if (params.rng == Rng::kTorch) throw std::invalid_argument("verify_draft has no torch noise");
    check_noise(params.rng, nullptr, params.noise, params.seeds);
  }
  return params;
}

void verify_draft(int threads, const py::kwargs& kwargs) {
  DraftParams params = draft_params(Arguments(kwargs));
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  cpu::implementation().verify_draft(params);
}

#if PYGEN_CUDA
void launch_verify_draft(int ordinal, uintptr_t stream, const py::kwargs& kwargs) {
  check_launch(
      cuda::verify_draft(draft_params(Arguments(kwargs)), {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}
#endif

}  // namespace

void bind_verify_draft(py::module_& m) {
  m.def("verify_draft", &verify_draft);
#if PYGEN_CUDA
  m.def("launch_verify_draft", &launch_verify_draft);
#endif
}

}  // namespace pygen::bindings
