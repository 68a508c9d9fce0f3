// What the kernels use of a GPU beyond plain C++, in one place: shared memory, clusters, 16-byte loads, launches.
//
// The same kernel sources are compiled by nvcc and, for tests, by a host compiler against tests/cuda_host/, which gives
// the names below (and threadIdx, __syncthreads, __shfl_xor_sync, atomicAdd, ...) a meaning on the CPU and watches
// every access. So kernels declare no `__shared__` variables, reach shared memory through `Shared` alone, and load
// logits through `load_vector` and `load_scalar`.
#pragma once

#if defined(__CUDACC__)

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernel_limits.h"

#define PYGEN_DEVICE __device__ __forceinline__

namespace pygen::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
PYGEN_DEVICE auto atomic_operand(T* p) {
  if constexpr (sizeof(T) == 8) {
    return reinterpret_cast<unsigned long long*>(p);
  } else {
    return p;
  }
}

// An array in the shared memory of a block. Words of a `Shared` of another block of the cluster may be used between two
// cluster_sync() that both blocks reach: after the cluster_wait() of the first and before the cluster_arrive() of the
// second.
template <typename T>
class Shared {
 public:
  Shared() = default;
  PYGEN_DEVICE explicit Shared(T* data) : data_(data) {}
  PYGEN_DEVICE T get(int i) const { return data_[i]; }
  PYGEN_DEVICE void set(int i, T value) const { data_[i] = value; }
  // A read that atomics of other threads may overtake; `get` has to be ordered after them by a barrier.
  PYGEN_DEVICE T peek(int i) const { return *const_cast<const volatile T*>(data_ + i); }
  // Atomic within the cluster; they return the old value.
  PYGEN_DEVICE T add(int i, T value) const { return static_cast<T>(atomicAdd(atomic_operand(data_ + i), value)); }
  PYGEN_DEVICE T bit_or(int i, T value) const { return static_cast<T>(atomicOr(atomic_operand(data_ + i), value)); }
  PYGEN_DEVICE T max(int i, T value) const { return static_cast<T>(atomicMax(atomic_operand(data_ + i), value)); }
  PYGEN_DEVICE T min(int i, T value) const { return static_cast<T>(atomicMin(atomic_operand(data_ + i), value)); }
  PYGEN_DEVICE T compare_and_swap(int i, T expected, T value) const {
    return static_cast<T>(atomicCAS(atomic_operand(data_ + i), expected, value));
  }
  // 16 bytes at element i, which has to lie on a multiple of 16 bytes.
  PYGEN_DEVICE uint4 get_vector(int i) const { return *reinterpret_cast<const uint4*>(data_ + i); }
  PYGEN_DEVICE void set_vector(int i, uint4 value) const { *reinterpret_cast<uint4*>(data_ + i) = value; }
  PYGEN_DEVICE Shared from(int offset) const { return Shared(data_ + offset); }
  // The same memory as numbers of another type.
  template <typename U>
  PYGEN_DEVICE Shared<U> as() const {
    return Shared<U>(reinterpret_cast<U*>(data_));
  }
  // The same array of the block with this rank in the cluster.
  PYGEN_DEVICE Shared of_block(unsigned rank) const {
#if __CUDA_ARCH__ >= 900
    return Shared(static_cast<T*>(__cluster_map_shared_rank(data_, rank)));
#else
    return *this;
#endif
  }

 private:
  template <typename U>
  friend __device__ void copy_async(const Shared<U>& to, int i, const void* from);

  T* data_ = nullptr;
};

// Hands out the dynamic shared memory of the block from its start, every array on a multiple of 16 bytes. All blocks of
// a cluster have to take the same arrays in the same order.
class SharedMemory {
 public:
  PYGEN_DEVICE SharedMemory() {
    extern __shared__ __align__(16) unsigned char pygen_shared_memory[];
    next_ = pygen_shared_memory;
  }
  template <typename T>
  PYGEN_DEVICE Shared<T> take(int count) {
    T* data = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 15) / 16 * 16;
    return Shared<T>(data);
  }

 private:
  unsigned char* next_;
};

// A kernel launched without a cluster is a cluster of one block.
PYGEN_DEVICE unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}
PYGEN_DEVICE unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
// The cluster's place in the grid.
PYGEN_DEVICE unsigned cluster_index() {
#if __CUDA_ARCH__ >= 900
  unsigned index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
#else
  return blockIdx.x;
#endif
}
// The barrier of the cluster in two halves, for all threads of all blocks: what a block does before it arrives happens
// before what any thread of the cluster does after it waits. Between the two a block may do what concerns no other block.
//
// Only the first warp arrives with `release`, whose fence is expensive. By the causality order of PTX that is enough:
// __syncthreads orders what every thread of the block did before the first warp's arrival, and what a release follows in
// this order is part of it.
PYGEN_DEVICE void cluster_arrive() {
  __syncthreads();
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x < kWarp) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  } else {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }
#endif
}
PYGEN_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// All threads of all blocks of the cluster; orders shared and global memory among them.
PYGEN_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Reads of memory that no kernel writes while this one runs, past the first-level cache.
PYGEN_DEVICE uint4 load_vector(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
template <typename T>
PYGEN_DEVICE T load_scalar(const T* p) {
  return __ldg(p);
}

// Copies 16 bytes of global memory that no kernel writes meanwhile to element i of the caller's own block, past the
// first-level cache; both sides have to be multiples of 16 bytes. Nobody may use the 16 bytes of shared memory from here
// until the wait that covers the copy, and only this thread between that wait and the next barrier. What the thread
// itself did to them before is done.
template <typename T>
PYGEN_DEVICE void copy_async(const Shared<T>& to, int i, const void* from) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to.data_ + i));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
// Closes the group of the copies that this thread issued since the last group; a group may be empty.
PYGEN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the newest kPending groups of this thread.
template <int kPending>
PYGEN_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The larger; NaN where one is NaN. Of a word's two numbers, place by place, in the others.
PYGEN_DEVICE float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}
PYGEN_DEVICE uint32_t max_or_nan_of_halves(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
PYGEN_DEVICE uint32_t max_or_nan_of_bfloats(uint32_t a, uint32_t b) {
  uint32_t larger;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// Each hexadecimal digit of kBytes names a byte of the result, the lowest first: 8 + i is the sign of byte i of `word`,
// in all its bits.
template <unsigned kBytes>
PYGEN_DEVICE uint32_t spread_signs(uint32_t word) {
  uint32_t spread;
  asm("prmt.b32 %0, %1, %1, %2;" : "=r"(spread) : "r"(word), "n"(kBytes));
  return spread;
}

// 2^x within 2 ulp; 0 where it is below 2^-126.
PYGEN_DEVICE float exp2_about(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

PYGEN_DEVICE float float_from_half_bits(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Programmatic dependent launch: before `wait` nothing of the kernel in front may be read; `trigger` lets the kernel
// behind start its own prologue.
PYGEN_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PYGEN_DEVICE void trigger_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct Launch {
  unsigned blocks = 1;
  unsigned threads = 1;    // per block
  unsigned cluster = 1;    // blocks per cluster; more than 1 needs compute capability 9.0
  unsigned shared = 0;     // bytes of dynamic shared memory per block
  bool dependent = false;  // may start while the kernel in front still runs
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
  if (const Error error = allow_shared(address_of(kernel), launch.shared); error != 0)
    return static_cast<cudaError_t>(error);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared;
  config.stream = launch.stream;
  config.attrs = attributes;
  if (launch.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {launch.cluster, 1, 1};
  }
  if (launch.dependent) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace pygen::cuda

#else
#include "cuda_host/device.h"
#endif
