// Arguments of the op `token_logprobs`, as every backend receives them. Strides are in elements.
#pragma once

#include <cstdint>

#include "common/sample_params.h"

namespace pygen {

struct LogprobParams {
  int64_t rows = 0;
  int64_t vocab_size = 0;
  DType dtype = DType::kFloat32;
  int threads = 1;               // CPU only
  const void* logits = nullptr;  // (rows, vocab_size)
  int64_t logits_stride = 0;
  const int64_t* token_ids = nullptr;  // (rows, num_tokens)
  int64_t token_ids_stride = 0;
  int64_t num_tokens = 0;
  int64_t num_top = 0;
  float* logprobs = nullptr;      // (rows, num_tokens)
  int64_t* top_ids = nullptr;     // (rows, num_top) or null
  float* top_logprobs = nullptr;  // (rows, num_top) or null
  int32_t* status = nullptr;      // (rows,)
};

}  // namespace pygen
