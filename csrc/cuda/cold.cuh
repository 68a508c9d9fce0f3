// A function that is not inlined: rows that do not need it pay no registers for it, and its callers share one copy.
#pragma once

#if defined(__CUDACC__)
#define PYGEN_COLD inline __device__ __noinline__
#else
#define PYGEN_COLD inline
#endif
