// Arguments of the op `verify_draft`, as every backend receives them. Strides are in elements.
#pragma once

#include <cstdint>

#include "common/sample_params.h"

namespace pygen {

struct DraftParams {
  int64_t rows = 0;
  int64_t vocab_size = 0;
  int64_t num_drafts = 0;  // n, columns of draft_ids
  int threads = 1;         // CPU only

  DType target_dtype = DType::kFloat32;
  const void* target = nullptr;  // (rows, n + 1, vocab_size) scores of the target
  int64_t target_row_stride = 0;
  int64_t target_position_stride = 0;
  DType draft_dtype = DType::kFloat32;
  const void* draft = nullptr;  // (rows, n, vocab_size) scores that the drafts were drawn from, or null: certain drafts
  int64_t draft_row_stride = 0;
  int64_t draft_position_stride = 0;
  const int64_t* draft_ids = nullptr;  // (rows, n)
  int64_t draft_ids_stride = 0;
  Knob<int64_t> lengths{0};       // drafts of a row in use, at most n
  Knob<float> temperature{1.0f};  // 0: a greedy row

  Rng rng = Rng::kPhilox;
  Knob<int64_t> step{0};            // tokens generated before the first draft
  const int64_t* seeds = nullptr;   // (rows,) 64-bit patterns; philox
  const float* uniforms = nullptr;  // (rows, n) acceptance draws; given
  const float* noise = nullptr;     // (rows, vocab_size) of the recovered or bonus token; given
  int64_t noise_stride = 0;

  int64_t* accepted = nullptr;   // (rows,) how many drafts stay
  int64_t* token_ids = nullptr;  // (rows,) the token behind them
  int32_t* status = nullptr;     // (rows,)
};

}  // namespace pygen
