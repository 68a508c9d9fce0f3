// sample, rows of the kind kListed.
#include "cuda/sample_kernels.h"
#include "cuda/sample_row.cuh"

namespace pygen::cuda {

Error sample_listed(const SampleParams& params, const Context& context) {
  return launch_rows<Rows::kListed>(params, context);
}

}  // namespace pygen::cuda
