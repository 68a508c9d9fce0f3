// csrc/cuda/device.cuh for a host compiler: the same names and rules on the CPU, with every rule checked (README.md).
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "cuda_host/types.h"
// Types before what takes them.
#include "cuda_host/atomics.h"
#include "cuda_host/copies.h"
#include "cuda_host/functions.h"
#include "cuda_host/launch.h"
#include "cuda_host/shared.h"
#include "cuda_host/synchronize.h"

namespace pygen::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace pygen::cuda
