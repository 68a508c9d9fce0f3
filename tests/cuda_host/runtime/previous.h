// What the kernels in front wrote to global memory: a dependent kernel may start early, and uses none of it before it waits.
#pragma once

#include <cstddef>

namespace pygen::cuda::host {

// Around a launch. The blocks of the heap that its parameters point to are compared with what they held before.
void begin_writes(const void* parameters, size_t bytes, bool dependent);
void end_writes();

// From the start of a cluster of a dependent launch until its threads may go on from wait_for_previous_kernel:
// AddressSanitizer ends the process at a use.
void hide_previous_writes();
void show_previous_writes();

}  // namespace pygen::cuda::host
