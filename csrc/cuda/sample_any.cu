// sample, rows of the kind kAny.
#include "cuda/sample_kernels.h"
#include "cuda/sample_row.cuh"

namespace pygen::cuda {

Error sample_any(const SampleParams& params, const Context& context) {
  return launch_rows<Rows::kAny>(params, context);
}

}  // namespace pygen::cuda
