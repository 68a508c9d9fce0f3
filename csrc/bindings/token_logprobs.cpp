#include <algorithm>
#include <stdexcept>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "common/logprob_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

LogprobParams logprob_params(Arguments arguments) {
  LogprobParams params;
  params.rows = arguments.take<int64_t>("rows");
  params.vocab_size = arguments.take<int64_t>("vocab_size");
  params.dtype = static_cast<DType>(arguments.take<int>("dtype"));
  params.logits = arguments.take_pointer<void>("logits_ptr");
  params.logits_stride = arguments.take<int64_t>("logits_stride");
  params.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
  params.token_ids_stride = arguments.take<int64_t>("token_ids_stride");
  params.num_tokens = arguments.take<int64_t>("num_tokens");
  params.num_top = arguments.take<int64_t>("num_top");
  params.logprobs = arguments.take_pointer<float>("logprobs_ptr");
  params.top_ids = arguments.take_pointer<int64_t>("top_ids_ptr");
  params.top_logprobs = arguments.take_pointer<float>("top_logprobs_ptr");
  params.status = arguments.take_pointer<int32_t>("status_ptr");
  arguments.finish();
  if (params.rows < 0 || params.vocab_size < 1 || params.num_tokens < 0 || params.num_top < 0)
    throw std::invalid_argument("a size is negative");
  if (params.rows > 0 && (params.logits == nullptr || params.status == nullptr))
    throw std::invalid_argument("logits or status is a null pointer");
  return params;
}

void token_logprobs(int threads, const py::kwargs& kwargs) {
  LogprobParams params = logprob_params(Arguments(kwargs));
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  cpu::implementation().token_logprobs(params);
}

#if PYGEN_CUDA
void launch_token_logprobs(int ordinal, uintptr_t stream, const py::kwargs& kwargs) {
  check_launch(cuda::token_logprobs(logprob_params(Arguments(kwargs)),
                                    {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}
#endif

}  // namespace

void bind_token_logprobs(py::module_& m) {
  m.def("token_logprobs", &token_logprobs);
#if PYGEN_CUDA
  m.def("launch_token_logprobs", &launch_token_logprobs);
#endif
}

}  // namespace pygen::bindings
