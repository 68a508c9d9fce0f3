// What history does to a score; one formula for every backend.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace pygen {

// Keskar et al. 2019 with Hugging Face's sign rule: a penalty above 1 lowers the score whatever its sign.
PYGEN_HOST_DEVICE float repetition_penalized(float score, float repetition_penalty) {
  return score < 0.0f ? score * repetition_penalty : score / repetition_penalty;
}

// OpenAI's definition; count: how often the token was generated so far, at least 1.
PYGEN_HOST_DEVICE float count_penalized(float score, int64_t count, float presence_penalty, float frequency_penalty) {
  return (score - static_cast<float>(count) * frequency_penalty) - presence_penalty;
}

}  // namespace pygen
