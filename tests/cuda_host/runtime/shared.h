// Accesses to shared memory on behalf of what a kernel calls at `place`.
#pragma once

#include "cuda_host/shared.h"

namespace pygen::cuda::host {

unsigned char* touch_shared(const SharedArray& array, long long at, unsigned bytes, Access access, const void* place);

}  // namespace pygen::cuda::host
