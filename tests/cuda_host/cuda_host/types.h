// The words and types that nvcc knows by itself.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#define PYGEN_DEVICE inline
// What only passes a call on: reports then name the line in the kernel.
#define PYGEN_FORWARD inline __attribute__((always_inline))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Aligned as on the device, where a vector is loaded as one.
#define PYGEN_VECTOR_TYPES(name, scalar)                                                       \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                 \
  struct alignas(sizeof(scalar) < 8 ? 4 * sizeof(scalar) : 16) name##4 { scalar x, y, z, w; }; \
  constexpr name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                      \
  constexpr name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
PYGEN_VECTOR_TYPES(char, signed char)
PYGEN_VECTOR_TYPES(uchar, unsigned char)
PYGEN_VECTOR_TYPES(short, short)
PYGEN_VECTOR_TYPES(ushort, unsigned short)
PYGEN_VECTOR_TYPES(int, int)
PYGEN_VECTOR_TYPES(uint, unsigned)
PYGEN_VECTOR_TYPES(longlong, long long)
PYGEN_VECTOR_TYPES(ulonglong, unsigned long long)
PYGEN_VECTOR_TYPES(float, float)
PYGEN_VECTOR_TYPES(double, double)
#undef PYGEN_VECTOR_TYPES

// The runtime sets them whenever it goes on with another thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

using cudaStream_t = struct CUstream_st*;

// The numbers are CUDA's.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};
