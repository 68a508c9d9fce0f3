// Lets the headers of common/ be one source for the CPU kernels and for CUDA.
#pragma once

#if defined(__CUDACC__)
#define PYGEN_HOST_DEVICE __host__ __device__ __forceinline__
// Not inlined in kernels.
#define PYGEN_HOST_DEVICE_COLD inline __host__ __device__ __noinline__
// For templates over what only a kernel can call.
#define PYGEN_KERNEL __device__ __forceinline__
#else
// `static`: every instruction set gets its own copy. A merged inline function could carry instructions that the machine
// lacks.
#define PYGEN_HOST_DEVICE static inline __attribute__((always_inline))
#define PYGEN_HOST_DEVICE_COLD PYGEN_HOST_DEVICE
#define PYGEN_KERNEL PYGEN_HOST_DEVICE
#endif
