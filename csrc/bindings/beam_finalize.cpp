#include <algorithm>
#include <stdexcept>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "common/finalize_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

FinalizeParams finalize_params(Arguments arguments) {
  FinalizeParams params;
  params.batch_size = arguments.take<int64_t>("batch_size");
  params.num_beams = arguments.take<int64_t>("num_beams");
  params.num_return_sequences = arguments.take<int64_t>("num_return_sequences");
  params.prompt_length = arguments.take<int64_t>("prompt_length");
  params.width = arguments.take<int64_t>("width");
  params.pad_token_id = arguments.take<int64_t>("pad_token_id");
  params.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
  params.token_ids_stride = arguments.take<int64_t>("token_ids_stride");
  params.step_tokens = arguments.take_pointer<int64_t>("step_tokens_ptr");
  params.step_parents = arguments.take_pointer<int32_t>("step_parents_ptr");
  params.finished_steps = arguments.take_pointer<int64_t>("finished_steps_ptr");
  params.finished_tokens = arguments.take_pointer<int64_t>("finished_tokens_ptr");
  params.finished_parents = arguments.take_pointer<int32_t>("finished_parents_ptr");
  params.sequences = arguments.take_pointer<int64_t>("sequences_ptr");
  params.beam_indices = arguments.take_pointer<int32_t>("beam_indices_ptr");
  arguments.finish();
  if (params.batch_size < 0 || params.num_beams < 1 || params.prompt_length < 0 || params.width < 0)
    throw std::invalid_argument("a size is negative");
  return params;
}

void beam_finalize(int threads, const py::kwargs& kwargs) {
  FinalizeParams params = finalize_params(Arguments(kwargs));
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  cpu::implementation().beam_finalize(params);
}

#if PYGEN_CUDA
void launch_beam_finalize(int ordinal, uintptr_t stream, const py::kwargs& kwargs) {
  check_launch(cuda::beam_finalize(finalize_params(Arguments(kwargs)),
                                   {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}
#endif

}  // namespace

void bind_beam_finalize(py::module_& m) {
  m.def("beam_finalize", &beam_finalize);
#if PYGEN_CUDA
  m.def("launch_beam_finalize", &launch_beam_finalize);
#endif
}

}  // namespace pygen::bindings
