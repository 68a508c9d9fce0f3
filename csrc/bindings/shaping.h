// Shared by the ops that shape scores: reading knobs and tables, checking noise, and running the op.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "bindings/arguments.h"
#include "common/sample_params.h"

namespace pygen::bindings {

ShapingParams take_shaping(Arguments& arguments);

void set_call(ShapingParams& params, uintptr_t logits, int64_t logits_stride, int64_t length);

// Tables of a call: pointer, stride and columns of input_ids, pointer and stride of bias, pointer, stride and count of
// suppress, pointer and stride of token_bitmask.
using Tables = std::array<int64_t, 10>;
void set_tables(ShapingParams& params, const std::optional<Tables>& tables);

void check_noise(Rng rng, const void* generator_state, const void* noise, const void* seeds);

// Below this many scores a call is over before another Python thread could use the interpreter.
constexpr int64_t kScoresToReleaseTheInterpreter = 32768;

template <typename Params>
void launch(void (*op)(const Params&), const Params& params) {
  if (params.shaping.rows * params.shaping.vocab_size < kScoresToReleaseTheInterpreter) {
    op(params);
  } else {
    py::gil_scoped_release release;
    op(params);
  }
}

}  // namespace pygen::bindings
