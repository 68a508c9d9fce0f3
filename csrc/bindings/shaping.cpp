#include "bindings/shaping.h"

#include <algorithm>
#include <stdexcept>

namespace pygen::bindings {

ShapingParams take_shaping(Arguments& arguments) {
  ShapingParams params;
  params.rows = arguments.take<int64_t>("rows");
  params.vocab_size = arguments.take<int64_t>("vocab_size");
  params.dtype = static_cast<DType>(arguments.take<int>("dtype"));
  params.threads = std::max(1, arguments.take<int>("threads"));
  if (params.rows < 0 || params.vocab_size < 1) throw std::invalid_argument("rows must be >= 0 and vocab_size >= 1");
#define PYGEN_KNOB(type, name, neutral) params.name = arguments.take_knob<type>(#name);
#include "common/knobs.def"
  params.prompt_lengths = arguments.take_knob<int64_t>("prompt_lengths");
  params.input_ids = arguments.take_pointer<int64_t>("input_ids_ptr");
  params.input_ids_stride = arguments.take<int64_t>("input_ids_stride");
  params.history_length = arguments.take<int64_t>("input_ids_length");
  params.history_steps = arguments.take_pointer<int64_t>("history_steps_ptr");
  params.bias = arguments.take_pointer<float>("bias_ptr");
  params.bias_stride = arguments.take<int64_t>("bias_stride");
  params.suppress = arguments.take_pointer<int64_t>("suppress_ptr");
  params.suppress_stride = arguments.take<int64_t>("suppress_stride");
  params.suppress_count = arguments.take<int64_t>("suppress_count");
  params.token_bitmask = arguments.take_pointer<int32_t>("token_bitmask_ptr");
  params.token_bitmask_stride = arguments.take<int64_t>("token_bitmask_stride");
  return params;
}

void set_call(ShapingParams& params, uintptr_t logits, int64_t logits_stride, int64_t length) {
  if (logits == 0 && params.rows > 0) throw std::invalid_argument("logits is a null pointer");
  params.logits = pointer<const void>(logits);
  params.logits_stride = logits_stride;
  params.history_length = length;
}

void set_tables(ShapingParams& params, const std::optional<Tables>& tables) {
  if (!tables) return;
  const auto& [ids, ids_stride, length, bias, bias_stride, suppress, suppress_stride, count, mask, mask_stride] =
      *tables;
  params.input_ids = pointer<const int64_t>(static_cast<uintptr_t>(ids));
  params.input_ids_stride = ids_stride;
  params.history_length = length;
  params.bias = pointer<const float>(static_cast<uintptr_t>(bias));
  params.bias_stride = bias_stride;
  params.suppress = pointer<const int64_t>(static_cast<uintptr_t>(suppress));
  params.suppress_stride = suppress_stride;
  params.suppress_count = count;
  params.token_bitmask = pointer<const int32_t>(static_cast<uintptr_t>(mask));
  params.token_bitmask_stride = mask_stride;
}

void check_noise(Rng rng, const void* generator_state, const void* noise, const void* seeds) {
  const void* source = rng == Rng::kTorch ? generator_state : rng == Rng::kGiven ? noise : seeds;
  if (source == nullptr) throw std::invalid_argument("the noise's pointer is null");
}

}  // namespace pygen::bindings
