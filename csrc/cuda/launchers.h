// The CUDA ops as csrc/bindings calls them: parameters of common/ with device pointers, and where to run. No launcher
// allocates, reads device memory or waits, so that all of them can be captured in a CUDA graph.
#pragma once

#include <cstddef>

#include "common/beam_params.h"
#include "common/draft_params.h"
#include "common/finalize_params.h"
#include "common/logprob_params.h"
#include "common/reorder_params.h"
#include "common/sample_params.h"

struct CUstream_st;

namespace pygen::cuda {

struct Device {
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int threads_per_multiprocessor = 0;
  int shared_per_block = 0;  // bytes that a kernel may ask for
};

struct Context {
  Device device;
  CUstream_st* stream = nullptr;
  // Zero before the first launch; every launch leaves its counters zero. Launches that share it must not overlap.
  void* workspace = nullptr;
};

// A CUDA error code, 0 for success, of a launch; its words.
using Error = int;
const char* error_text(Error error);
Error device_of(int ordinal, Device& device);

// Bytes of workspace for a launch with these sizes, whatever else the parameters say.
size_t sample_workspace(const SampleParams& params, const Device& device);
size_t process_logits_workspace(const ProcessParams& params, const Device& device);
size_t beam_step_workspace(const BeamParams& params, const Device& device);

Error sample(const SampleParams& params, const Context& context);
Error process_logits(const ProcessParams& params, const Context& context);
Error beam_step(const BeamParams& params, const Context& context);
Error beam_finalize(const FinalizeParams& params, const Context& context);
Error reorder_cache(const ReorderParams& params, const Context& context);
Error token_logprobs(const LogprobParams& params, const Context& context);
Error verify_draft(const DraftParams& params, const Context& context);

}  // namespace pygen::cuda
