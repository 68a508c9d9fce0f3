// ln of a double. A function in kernels: in line it is a kilobyte of code at every use.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace pygen {

PYGEN_HOST_DEVICE_COLD double ln(double x) { return log(x); }

}  // namespace pygen
