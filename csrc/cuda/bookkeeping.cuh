// What happens to a row once its token is known, and what the last row of a launch does for all.
#pragma once

#include "common/sample_params.h"
#include "cuda/device.cuh"

namespace pygen::cuda {

// At the start of the workspace; zero between launches.
struct LaunchCounters {
  unsigned int rows_done;
  unsigned int unfinished;
};
constexpr size_t kCounterBytes = 64;

// Appends the token to the sequences; a finished row gets the pad token instead. One warp, all lanes; returns what was
// appended. `still_open`: whether the row goes on.
PYGEN_DEVICE int64_t extend_sequence(const StateParams& state, int64_t row, int64_t step, int64_t token,
                                     bool& still_open) {
  const bool first = threadIdx.x % kWarp == 0;
  const bool finished = state.finished[row] != 0;
  bool ends = false;
  if (finished) {
    token = state.pad_token_id;
  } else {
#pragma unroll 1
    for (int64_t i = threadIdx.x % kWarp; i < state.eos_count; i += kWarp) ends |= token == state.eos_token_ids[i];
  }
  ends = __ballot_sync(kAllLanes, ends) != 0;
  still_open = !finished && !ends;
  if (first) {
    if (!finished) ++state.num_generated[row];
    if (ends) state.finished[row] = 1;
    if (state.steps != nullptr) ++state.steps[row];
    const int64_t column = state.append_offset + step;
    state.token_ids[row * state.token_ids_stride + column] = token;
    if (state.history != state.token_ids) state.history[row * state.history_stride + column] = token;
  }
  return token;
}

// One thread per row, its last act. The last of them publishes the number of unfinished rows and moves torch's
// generator.
PYGEN_DEVICE void leave(const SampleParams& params, LaunchCounters* counters, bool still_open) {
  const bool counts = params.state.token_ids != nullptr;
  const bool advances = params.rng == Rng::kTorch && params.torch_noise.generator != nullptr;
  if (!counts && !advances) return;
  if (still_open) atomicAdd(&counters->unfinished, 1u);
  __threadfence();
  if (atomicAdd(&counters->rows_done, 1u) + 1 != static_cast<unsigned int>(params.shaping.rows)) return;
  __threadfence();
  const unsigned int unfinished = atomicAdd(&counters->unfinished, 0u);
  if (counts) *params.state.unfinished = unfinished;
  if (advances) params.torch_noise.generator[1] += static_cast<uint64_t>(params.torch_noise.increment);
  counters->unfinished = 0;
  counters->rows_done = 0;
}

}  // namespace pygen::cuda
