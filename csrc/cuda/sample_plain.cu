// sample, rows of the kind kPlain.
#include "cuda/sample_kernels.h"
#include "cuda/sample_row.cuh"

namespace pygen::cuda {

Error sample_plain(const SampleParams& params, const Context& context) {
  return launch_rows<Rows::kPlain>(params, context);
}

}  // namespace pygen::cuda
