// The temperature that a row is divided by.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace pygen {

// `temperature`, or, where the row's largest score would leave float32's range over it, the one that makes it 2^100. At
// both, a score that is not equal to the largest has no probability in float32. `max_score`: finite.
PYGEN_HOST_DEVICE float fitting_temperature(float temperature, float max_score) {
  const float magnitude = fabsf(max_score);
  const bool fits = magnitude / temperature <= 3.402823466e38f;
  return fits ? temperature : magnitude * 0x1p-100f;
}

}  // namespace pygen
