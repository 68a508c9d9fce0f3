// beam_finalize: the best hypotheses of a beam search, each walked from its last token back through the parents.
#include <algorithm>

#include "common/finalize_params.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

void write_hypothesis(const FinalizeParams& params, int64_t out_row) {
  const int64_t rows = params.batch_size * params.num_beams;
  const int64_t item = out_row / params.num_return_sequences;
  const int64_t index = item * params.num_beams + out_row % params.num_return_sequences;
  const int64_t* prompt = params.token_ids + item * params.num_beams * params.token_ids_stride;
  int64_t* sequence = params.sequences + out_row * (params.prompt_length + params.width);
  int32_t* beams = params.beam_indices + out_row * params.width;

  int64_t* generated = std::copy(prompt, prompt + params.prompt_length, sequence);
  const int64_t length = params.finished_steps[index] + 1;
  std::fill(generated + length, generated + params.width, params.pad_token_id);
  std::fill(beams + length, beams + params.width, -1);

  int64_t token = params.finished_tokens[index];
  int64_t beam = params.finished_parents[index];
  for (int64_t step = length - 1; step >= 0; --step) {
    generated[step] = token;
    beams[step] = static_cast<int32_t>(beam);
    if (step == 0) break;
    // A broken walk shows in the beam indices, which the op looks through.
    const int64_t safe = beam >= 0 && beam < rows ? beam : 0;
    token = params.step_tokens[(step - 1) * rows + safe];
    beam = params.step_parents[(step - 1) * rows + safe];
  }
}

}  // namespace

void beam_finalize(const FinalizeParams& params) {
  const int64_t rows = params.batch_size * params.num_return_sequences;
  const Split split = split_threads(rows, params.prompt_length + params.width, params.threads);
  parallel_rows(rows, split.over_rows, [&](int64_t row) { write_hypothesis(params, row); });
}

}  // namespace pygen::cpu::PYGEN_ISA
