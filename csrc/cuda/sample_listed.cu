// sample, rows of the kind kListed.
#include "cuda/sample_kernels.h"
#include "cuda/sample_row.cuh"

namespace pygen::cuda {

Error sample_listed(const SampleParams& params, const Context& context) {
  switch (params.shaping.dtype) {
    case DType::kFloat16: return launch_rows<DType::kFloat16, Rows::kListed>(params, context);
    case DType::kBFloat16: return launch_rows<DType::kBFloat16, Rows::kListed>(params, context);
    default: return launch_rows<DType::kFloat32, Rows::kListed>(params, context);
  }
}

}  // namespace pygen::cuda
