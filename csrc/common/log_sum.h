// ln of a sum of e^score.
#pragma once

#include "common/host_device.h"

namespace pygen {

// The largest score, and ln of the sum of e^(score - largest). Apart, as one double cannot hold both of large scores.
struct LogSum {
  float largest = 0.0f;
  double rest = 0.0;
};

PYGEN_HOST_DEVICE float rounded(const LogSum& sum) {
  return static_cast<float>(static_cast<double>(sum.largest) + sum.rest);
}

PYGEN_HOST_DEVICE float log_probability(float score, const LogSum& sum) {
  return static_cast<float>((static_cast<double>(score) - sum.largest) - sum.rest);
}

}  // namespace pygen
