// Arguments of the op `beam_step`, as every backend receives them, and its score formulas. Strides are in elements.
//
// B prompts with n beams have B * n rows. A row is an index of the model's batch; a beam is a rank, and `slots` says
// which row holds it.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/sample_params.h"

namespace pygen {

// Stands for minus infinity where Hugging Face has it: finite, and float32 rounds away whatever is added to it.
constexpr float kNeverWins = -1e9f;

// A continuation of a beam. `value` selects: the score, or in a draw the score minus ln E. A draw leaves -ln E alone
// between its two halves, because no double holds that beside a large score.
struct Candidate {
  double value;
  float score;     // sum of scores, the parent's included
  int32_t parent;  // rank of the beam that it continues
  int64_t token_id;
};
static_assert(sizeof(Candidate) == 24, "pygen/ops/beam_step.py makes room for 24 bytes");

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
  int64_t* steps = nullptr;  // (rows,) all at the same step, counted up by the op; or null: the step of the call
  int64_t max_new_tokens = 0;
  const int64_t* limit = nullptr;  // (1,) steps that the search has room for, or null: max_new_tokens
  int64_t num_beams = 1;
  int64_t num_candidates = 2;  // K
  // (2, max_new_tokens): by what the score of a hypothesis that ends with a step is divided, and that of the best
  // running beam when it is compared with the finished ones.
  const float* normalisers = nullptr;
  bool stops_when_full = false;  // nothing joins n finished hypotheses
  bool sorts_draws = false;      // drawn candidates by score, not in the order of the draw
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

PYGEN_HOST_DEVICE int64_t step_of(const BeamParams& params) {
  return params.steps != nullptr ? params.steps[0] : params.step;
}
PYGEN_HOST_DEVICE bool is_last_step(const BeamParams& params, int64_t step) {
  return step + 1 == (params.limit != nullptr ? *params.limit : params.max_new_tokens);
}

// Whether the step changes nothing: a graph may be replayed once more before the host learns that the search is over.
PYGEN_HOST_DEVICE bool comes_too_late(const BeamParams& params) {
  return params.steps != nullptr && *params.unfinished == 0;
}

// Then a row stays where it is, and feeds its token again.
PYGEN_HOST_DEVICE void give_unmoved_row(const BeamParams& params, int64_t row) {
  params.source_rows[row] = row;
  params.shared_out[row] = step_of(params);
  params.status[row] = static_cast<int32_t>(kOk);
}

// Whether a candidate cannot go on; one without a token is none.
PYGEN_HOST_DEVICE bool candidate_ends(const BeamParams& params, int64_t token_id, bool is_last_step,
                                      bool criteria_say_so) {
  if (token_id < 0 || is_last_step || criteria_say_so) return true;
  for (int64_t e = 0; e < params.eos_count; ++e)
    if (token_id == params.eos_token_ids[e]) return true;
  return false;
}

// A candidate's score among the finished hypotheses. Bars are added one after the other, as float32 rounds them.
PYGEN_HOST_DEVICE float finished_score(float score, float normaliser, bool is_full, bool closed, bool joins) {
  score = score / normaliser + (is_full ? kNeverWins : 0.0f);
  score = score + (closed ? kNeverWins : 0.0f);
  return score + (joins ? 0.0f : kNeverWins);
}

// And among the beams that go on.
PYGEN_HOST_DEVICE float running_score(float score, bool ends) { return score + (ends ? kNeverWins : 0.0f); }

// Whether the best running beam beats one of the finished hypotheses, of which `worst` is the last.
PYGEN_HOST_DEVICE bool stays_open(float attainable, float worst, bool any_finished, bool all_finished) {
  return (any_finished && attainable > worst) || (!all_finished && attainable > kNeverWins);
}

// A row without a token counts only where the prompt has nothing left at all, and nothing counts in a closed prompt.
PYGEN_HOST_DEVICE int32_t reported_status(int32_t status, bool was_open, bool stuck) {
  return !was_open || (status == kAllMasked && !stuck) ? static_cast<int32_t>(kOk) : status;
}

// Whether the search is over, whatever prompts are open.
PYGEN_HOST_DEVICE bool search_is_over(const BeamParams& params, bool all_ended, bool all_finished) {
  return all_ended || (params.stops_when_full && all_finished);
}

}  // namespace pygen
