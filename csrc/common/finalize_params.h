// Arguments of the op `beam_finalize`, as every backend receives them. B prompts with n beams have B * n flat beams.
#pragma once

#include <cstdint>

namespace pygen {

struct FinalizeParams {
  int64_t batch_size = 0;            // B
  int64_t num_beams = 1;             // n
  int64_t num_return_sequences = 1;  // k
  int64_t prompt_length = 0;         // P
  int64_t width = 0;                 // L, generated tokens of the longest hypothesis
  int64_t pad_token_id = 0;
  int threads = 1;  // CPU only

  const int64_t* token_ids = nullptr;  // (B * n, at least P)
  int64_t token_ids_stride = 0;
  const int64_t* step_tokens = nullptr;       // (at least L, B * n)
  const int32_t* step_parents = nullptr;      // (at least L, B * n)
  const int64_t* finished_steps = nullptr;    // (B, n), < L where i < k
  const int64_t* finished_tokens = nullptr;   // (B, n)
  const int32_t* finished_parents = nullptr;  // (B, n)

  int64_t* sequences = nullptr;     // (B * k, P + L)
  int32_t* beam_indices = nullptr;  // (B * k, L)
};

}  // namespace pygen
