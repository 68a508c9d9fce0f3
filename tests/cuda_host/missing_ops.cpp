// Stands in for launchers whose .cu file is not built: they answer "operation not supported".
#include "cuda/launchers.h"
#include "cuda_host/types.h"

#define PYGEN_MISSING(op, Params) \
  __attribute__((weak)) Error op(const Params&, const Context&) { return cudaErrorNotSupported; }
#define PYGEN_MISSING_WORKSPACE(op, Params) \
  __attribute__((weak)) size_t op(const Params&, const Device&) { return 0; }

namespace pygen::cuda {

PYGEN_MISSING(sample, SampleParams)
PYGEN_MISSING(process_logits, ProcessParams)
PYGEN_MISSING(beam_step, BeamParams)
PYGEN_MISSING(beam_finalize, FinalizeParams)
PYGEN_MISSING(reorder_cache, ReorderParams)
PYGEN_MISSING(token_logprobs, LogprobParams)
PYGEN_MISSING(verify_draft, DraftParams)
PYGEN_MISSING_WORKSPACE(sample_workspace, SampleParams)
PYGEN_MISSING_WORKSPACE(process_logits_workspace, ProcessParams)
PYGEN_MISSING_WORKSPACE(beam_step_workspace, BeamParams)

}  // namespace pygen::cuda
