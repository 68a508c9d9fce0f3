// sample, rows of the kind kAny.
#include "cuda/sample_kernels.h"
#include "cuda/sample_row.cuh"

namespace pygen::cuda {

Error sample_any(const SampleParams& params, const Context& context) {
  switch (params.shaping.dtype) {
    case DType::kFloat16: return launch_rows<DType::kFloat16, Rows::kAny>(params, context);
    case DType::kBFloat16: return launch_rows<DType::kBFloat16, Rows::kAny>(params, context);
    default: return launch_rows<DType::kFloat32, Rows::kAny>(params, context);
  }
}

}  // namespace pygen::cuda
