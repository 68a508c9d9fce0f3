// The device that the ops see.
#pragma once

#include "cuda/launchers.h"

namespace pygen::cuda::host {

const Device& current_device();
void set_device(const Device& device);

}  // namespace pygen::cuda::host
