// Arguments of the ops `process_logits` and `sample`, as every backend receives them. Strides are in elements.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/torch_noise.h"

namespace pygen {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class Rng : int { kPhilox = 0, kTorch = 1, kGiven = 2 };
enum RowStatus : int32_t { kOk = 0, kNan = 1, kAllMasked = 2, kPosInf = 3 };

// One value for all rows, or one per row.
template <typename T>
struct Knob {
  T value{};
  const T* per_row = nullptr;  // (rows,) or null
};

template <typename T>
PYGEN_HOST_DEVICE T knob_at(const Knob<T>& knob, int64_t row) {
  return knob.per_row != nullptr ? knob.per_row[row] : knob.value;
}

struct ShapingParams {
  int64_t rows = 0;
  int64_t vocab_size = 0;
  DType dtype = DType::kFloat32;
  int threads = 1;               // CPU only
  const void* logits = nullptr;  // (rows, vocab_size)
  int64_t logits_stride = 0;     // between rows
  int64_t history_length = 0;    // columns of input_ids in use, of row r history_steps[r] more

#define PYGEN_KNOB(type, name, neutral) Knob<type> name{neutral};
#include "common/knobs.def"
  Knob<int64_t> prompt_lengths{0};  // columns of input_ids that were not generated

  const int64_t* input_ids = nullptr;  // (rows, history_length); ids outside the vocabulary are ignored
  int64_t input_ids_stride = 0;
  const int64_t* history_steps = nullptr;  // (rows,) or null
  const float* bias = nullptr;             // (rows or 1, vocab_size)
  int64_t bias_stride = 0;
  const int64_t* suppress = nullptr;  // (rows or 1, suppress_count)
  int64_t suppress_stride = 0;
  int64_t suppress_count = 0;
  const int32_t* token_bitmask = nullptr;  // (rows or 1, ceil(vocab_size / 32)), bit 1 = allowed
  int64_t token_bitmask_stride = 0;
};

PYGEN_HOST_DEVICE int64_t history_length_of(const ShapingParams& params, int64_t row) {
  return params.history_length + (params.history_steps != nullptr ? params.history_steps[row] : 0);
}

// The sequences that a draw extends. All pointers null: the op only returns its tokens.
struct StateParams {
  int64_t* token_ids = nullptr;  // (rows, capacity)
  int64_t token_ids_stride = 0;
  int64_t* history = nullptr;  // (rows, capacity); what penalties read, may be token_ids itself
  int64_t history_stride = 0;
  uint8_t* finished = nullptr;       // (rows,) bool
  int64_t* num_generated = nullptr;  // (rows,)
  int64_t* unfinished = nullptr;     // (1,)
  const int64_t* eos_token_ids = nullptr;
  int64_t eos_count = 0;
  int64_t pad_token_id = 0;
  int64_t append_offset = 0;  // column of step 0
  int64_t* steps = nullptr;   // (rows,) the steps of the rows, counted up by the op; or null: the step of the call
};

// Where the tokens that survive all filters go. All pointers null: nowhere.
struct KeptParams {
  int64_t limit = 0;             // how many ids a row can store
  int32_t* token_ids = nullptr;  // (rows, limit), ascending; unspecified beyond counts, or where counts > limit
  int32_t* counts = nullptr;     // (rows,)
  float* log_mass = nullptr;     // (rows,) ln of the sum of e^score, -inf without tokens
};

struct SampleParams {
  ShapingParams shaping;
  Rng rng = Rng::kPhilox;
  Knob<int64_t> step{0};           // tokens generated so far
  const int64_t* seeds = nullptr;  // (rows,) 64-bit patterns; philox
  const float* noise = nullptr;    // (rows, vocab_size); given
  int64_t noise_stride = 0;
  uint8_t* generator_state = nullptr;  // torch.Generator.get_state() of a CPU generator, advanced in place; torch
  TorchCudaNoise torch_noise;          // torch, on CUDA
  int64_t num_logprobs = 0;
  int64_t* token_ids = nullptr;   // (rows,)
  int32_t* status = nullptr;      // (rows,)
  float* logprobs = nullptr;      // (rows,) or null
  int64_t* top_ids = nullptr;     // (rows, num_logprobs) or null
  float* top_logprobs = nullptr;  // (rows, num_logprobs) or null
  KeptParams kept;
  StateParams state;
};

struct ProcessParams {
  ShapingParams shaping;
  float* out = nullptr;  // (rows, vocab_size)
  int64_t out_stride = 0;
};

}  // namespace pygen
