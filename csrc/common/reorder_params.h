// Arguments of the op `reorder_cache`, as every backend receives them. Strides are in elements.
#pragma once

#include <cstdint>

#include "common/sample_params.h"

namespace pygen {

// (rows, heads, positions, head_dim), last dimension contiguous.
struct CacheTensor {
  char* data = nullptr;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t element_size = 0;  // in bytes
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  int64_t position_stride = 0;
};

struct ReorderParams {
  int64_t rows = 0;
  int64_t length = 0;                 // positions [start, length) of a row move
  Knob<int64_t> start{0};             // by row
  const int64_t* span = nullptr;      // (2,) or null: [span[0] + start, min(span[1], length)) of a row move
  const int64_t* beam_idx = nullptr;  // (rows,)
  const CacheTensor* tensors = nullptr;
  int64_t num_tensors = 0;
  int threads = 1;  // CPU only
};

}  // namespace pygen
