// Arguments of the op `beam_step`, as every backend receives them, and its score formulas. Strides are in elements.
//
// B prompts with n beams have B * n rows. A row is a place in the model's batch; a beam is a rank, and `slots` says which
// row holds it.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "common/sample_params.h"

namespace pygen {

enum class EarlyStopping : int { kNo = 0, kYes = 1, kNever = 2 };

// Stands for minus infinity where Hugging Face has it: finite, and float32 rounds away whatever is added to it.
constexpr float kNeverWins = -1e9f;

PYGEN_HOST_DEVICE float length_normaliser(int64_t length, double length_penalty) {
  return static_cast<float>(pow(static_cast<double>(length), length_penalty));
}

struct BeamParams {
  ShapingParams shaping;  // by row
  bool normalized = false;
  bool do_sample = false;
  Rng rng = Rng::kPhilox;
  const int64_t* seeds = nullptr;  // (rows,) by beam, as all noise; philox
  const float* noise = nullptr;    // (rows, vocab_size); given
  int64_t noise_stride = 0;
  uint8_t* generator_state = nullptr;  // as in SampleParams; torch
  TorchCudaNoise torch_noise;          // by beam; torch, on CUDA

  int64_t step = 0;
  int64_t max_new_tokens = 0;
  int64_t num_beams = 1;
  int64_t num_candidates = 2;  // K
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::kNo;
  const int64_t* eos_token_ids = nullptr;
  int64_t eos_count = 0;
  int64_t pad_token_id = 0;

  // The state.
  int64_t* append = nullptr;  // (rows, prompt_length + max_new_tokens)
  int64_t append_stride = 0;
  int64_t* history = nullptr;  // the same shape, or null: `append`
  int64_t history_stride = 0;
  int64_t prompt_length = 0;
  int64_t* slots = nullptr;             // (B, n) rows
  int32_t* shared = nullptr;            // (B, n, n)
  float* running_scores = nullptr;      // (B, n)
  int64_t* step_tokens = nullptr;       // (max_new_tokens, rows)
  int32_t* step_parents = nullptr;      // (max_new_tokens, rows)
  float* finished_scores = nullptr;     // (B, n)
  uint8_t* finished = nullptr;          // (B, n) bool
  int64_t* finished_steps = nullptr;    // (B, n)
  int64_t* finished_tokens = nullptr;   // (B, n)
  int32_t* finished_parents = nullptr;  // (B, n)
  uint8_t* open = nullptr;              // (B,) bool
  int64_t* unfinished = nullptr;        // (1,)

  // Between the two halves: candidates (B, K), a missing one with token -1 and score -inf.
  int64_t* candidate_ids = nullptr;
  int64_t* candidate_parents = nullptr;
  float* candidate_scores = nullptr;
  const uint8_t* ends = nullptr;    // (B, K) bool, of the caller's criteria
  void* best_of_row = nullptr;      // (rows, K) of 24 bytes, by beam
  int64_t* count_of_row = nullptr;  // (rows,) by beam

  // Outputs by row.
  int64_t* token_ids = nullptr;
  int64_t* source_rows = nullptr;
  int64_t* shared_out = nullptr;
  int32_t* status = nullptr;

  bool select = true;   // find the candidates
  bool advance = true;  // update the state with them
};

}  // namespace pygen
