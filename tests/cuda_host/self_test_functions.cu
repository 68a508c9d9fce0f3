// Kernels that use what device.cuh offers.
#include "cuda/device.cuh"
#include "self_test.h"

namespace pygen::cuda::self_test {
namespace {

__global__ void indices(long long* out, unsigned*) {
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  out[thread] += thread + 1000 * blockDim.x + 1000000 * gridDim.x;
}

__global__ void block_barriers(long long* out, unsigned*) {
  SharedMemory memory;
  const auto values = memory.take<int>(64);
  const int i = index();
  values.set(i, i * i);
  __syncthreads();
  out[i] = values.get(63 - i);
  const int results[] = {__syncthreads_count(i < 10), __syncthreads_and(i < 64), __syncthreads_and(i < 63),
                         __syncthreads_or(i == 5), __syncthreads_or(i == 64)};
  for (int r = 0; r < 5; ++r) atomicAdd(reinterpret_cast<unsigned long long*>(out + 64 + r), results[r]);
}

__global__ void shuffles(long long* out, unsigned*) {
  const int i = index();
  out[i] = __shfl_sync(kAllLanes, i, 33);
  out[32 + i] = __shfl_sync(kAllLanes, static_cast<int8_t>(-i), 3, 8);
  out[64 + i] = __shfl_up_sync(kAllLanes, static_cast<long long>(i) << 40, 2) >> 40;
  out[96 + i] = __shfl_down_sync(kAllLanes, static_cast<unsigned>(i), 4, 16);
  out[128 + i] = static_cast<long long>(__shfl_xor_sync(kAllLanes, 0.5 * i, 5) * 2.0);
  out[160 + i] = static_cast<long long>(__shfl_xor_sync(kAllLanes, 0.5f * static_cast<float>(i), 16) * 2.0f);
}

__global__ void votes(long long* out, unsigned*) {
  const int i = index();
  int all = -1;
  if (i < 4) {
    out[i] = __ballot_sync(0xfu, i % 2);
  } else {
    out[i] = __ballot_sync(0xfffffff0u, i < 6);
  }
  const long long results[] = {__any_sync(kAllLanes, i == 9),        __any_sync(kAllLanes, i == 32),
                               __all_sync(kAllLanes, i < 32),        __all_sync(kAllLanes, i < 31),
                               __match_all_sync(kAllLanes, 7, &all), all,
                               __match_all_sync(kAllLanes, i, &all), all};
  out[32 + i] = __match_any_sync(kAllLanes, static_cast<unsigned long long>(i % 16) << 33);
  if (i == 31)
    for (int r = 0; r < 8; ++r) out[64 + r] = results[r];
}

__global__ void reductions(long long* out, unsigned*) {
  const int i = index() - 16;
  const unsigned bit = 1u << threadIdx.x;
  const long long results[] = {
      __reduce_add_sync(kAllLanes, i),    __reduce_min_sync(kAllLanes, i),   __reduce_max_sync(kAllLanes, i),
      __reduce_add_sync(kAllLanes, bit),  __reduce_min_sync(kAllLanes, bit), __reduce_max_sync(kAllLanes, bit),
      __reduce_and_sync(kAllLanes, ~bit), __reduce_or_sync(kAllLanes, bit),  __reduce_xor_sync(kAllLanes, bit)};
  if (i == 0)
    for (int r = 0; r < 9; ++r) out[r] = results[r];
}

__global__ void bits(long long* out, unsigned*) {
  const long long results[] = {__popc(0xF0Fu),
                               __popcll(~0ull),
                               __ffs(0),
                               __ffs(8),
                               __ffsll(1ll << 40),
                               __clz(0),
                               __clz(1),
                               __clzll(0),
                               __clzll(1),
                               __brev(1u),
                               __float_as_uint(1.0f),
                               static_cast<long long>(__uint_as_float(0x40000000u)),
                               __float_as_int(-0.0f),
                               __double_as_longlong(1.0),
                               __float2uint_rz(-1.0f),
                               __float2uint_rz(1e20f),
                               __float2int_rn(2.5f),
                               __umulhi(1u << 31, 6u),
                               static_cast<long long>(float_from_half_bits(0xC500)),
                               static_cast<long long>(float_from_half_bits(0x0001) * 0x1p24f)};
  for (int r = 0; r < 20; ++r) out[r] = results[r];
}

__global__ void shared_atomics(long long* out, unsigned*) {
  SharedMemory memory;
  const auto words = memory.take<int>(5);
  const auto wide = memory.take<uint64_t>(1);
  const auto real = memory.take<float>(1);
  const int i = index();
  if (i < 5) words.set(i, 0);
  if (i == 0) wide.set(0, 0);
  if (i == 0) real.set(0, 0.0f);
  __syncthreads();
  words.add(0, i);
  words.bit_or(1, 1 << i % 8);
  words.max(2, i);
  words.min(3, -i);
  wide.add(0, 1ull << 32);
  real.add(0, 0.5f);
  while (words.peek(4) == 0 && words.compare_and_swap(4, 0, 7) != 0) {
  }
  __syncthreads();
  if (i < 5) out[i] = words.get(i);
  if (i == 5) out[i] = static_cast<long long>(wide.get(0) >> 32);
  if (i == 6) out[i] = static_cast<long long>(real.get(0));
}

__global__ void global_atomics(long long* out, unsigned*) {
  const auto word = [=](int i) { return reinterpret_cast<unsigned*>(out + i); };
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(word(0), i);
  atomicOr(word(1), 1u << i % 8);
  atomicAnd(word(2), ~(1u << i % 8));
  atomicMax(word(3), i);
  atomicMin(reinterpret_cast<int*>(word(4)), -static_cast<int>(i));
  atomicXor(word(5), i);
  atomicAdd(reinterpret_cast<unsigned long long*>(out + 6), 1ull << 32);
  atomicCAS(word(7), i, i + 1);
  atomicAdd(reinterpret_cast<float*>(word(8)), 1.0f);
  atomicSub(word(9), 1u);
  __threadfence();
}

__global__ void clusters(long long* out, unsigned*) {
  SharedMemory memory;
  const auto mine = memory.take<unsigned>(32);
  const auto sum = memory.take<unsigned>(1);
  mine.set(index(), 100 * blockIdx.x + threadIdx.x);
  if (index() == 0) sum.set(0, 0);
  cluster_sync();
  const unsigned next = (cluster_rank() + 1) % cluster_size();
  const unsigned theirs = mine.of_block(next).get(31 - index());
  sum.of_block(0).add(0, 1);
  cluster_sync();
  out[blockIdx.x * 32 + index()] = theirs + 10000 * (cluster_rank() == 0 ? sum.get(0) : 0);
}

__global__ void cluster_halves(long long* out, unsigned*) {
  SharedMemory memory;
  const auto mine = memory.take<unsigned>(32);
  const auto unshared = memory.take<unsigned>(32);
  mine.set(index(), 100 * blockIdx.x + threadIdx.x);
  cluster_arrive();
  unshared.set(index(), 1000);
  cluster_wait();
  const unsigned theirs = mine.of_block(1 - cluster_rank()).get(31 - index());
  cluster_arrive();
  const unsigned own = mine.get(index());
  cluster_wait();
  mine.set(index(), theirs + own);
  out[blockIdx.x * 32 + index()] = mine.get(index()) + unshared.get(index());
}

__global__ void vectors_and_bytes(long long* out, unsigned* in) {
  SharedMemory memory;
  const auto bytes = memory.take<uint8_t>(64);
  const auto words = memory.take<unsigned>(32);
  bytes.from(32).set(index(), static_cast<uint8_t>(index()));
  bytes.set(index(), 255);
  if (index() < 8) words.set_vector(4 * index(), load_vector(in + 4 * index()));
  __syncthreads();
  const uint4 four = bytes.get_vector(32);
  if (index() == 0) out[0] = four.x;
  out[1 + index()] = words.get(index());
}

__global__ void memory_twice(long long* out, unsigned*) {
  SharedMemory first;
  const auto a = first.take<int>(32);
  a.set(index(), index());
  __syncthreads();
  const int kept = a.get(31 - index());
  __syncthreads();
  SharedMemory second;
  const auto b = second.take<int64_t>(16);
  if (index() < 16) b.set(index(), -index());
  __syncthreads();
  out[index()] = kept + b.get(index() / 2);
}

__global__ void warp_order(long long* out, unsigned*) {
  SharedMemory memory;
  const auto values = memory.take<int>(32);
  const int i = index();
  values.set(i, i);
  __syncwarp();
  out[i] = values.get(i ^ 1);
  const unsigned half = i < 16 ? 0xffffu : 0xffff0000u;
  __syncwarp(half);
  values.set(i ^ 2, 10 * i);
  __syncwarp(half);
  out[i] += values.get(i);
}

__global__ void dependent(long long* out, unsigned* in) {
  wait_for_previous_kernel();
  trigger_next_kernel();
  if (index() < 2) out[index()] = load_scalar(in + index());
}

__global__ void squares(long long* out, unsigned*) {
  trigger_next_kernel();
  out[index()] = index() * index();
}

__global__ void after_squares(long long* out, unsigned*) {
  SharedMemory memory;
  const auto values = memory.take<long long>(32);
  values.set(index(), out[64 + index()] + 1);
  __syncthreads();
  const long long own = values.get(31 - index());
  wait_for_previous_kernel();
  out[32 + index()] = own + out[31 - index()];
}

__global__ void many_barriers(long long* out, unsigned*) {
  for (int i = 0; i < 100; ++i) __syncthreads();
  if (index() == 0) out[0] = 100;
}

// Any order is a right one.
__global__ void order(long long* out, unsigned*) {
  const auto place = atomicAdd(reinterpret_cast<unsigned long long*>(out), 1);
  out[1 + place] = 64 * blockIdx.x + index();
}

}  // namespace

const Cases& functions() {
  static const Cases all = {
      {"indices", {{3, 70, 1, 0, false, nullptr}, indices}},
      {"block_barriers", {one_block(64, 256), block_barriers}},
      {"shuffles", {one_block(32), shuffles}},
      {"votes", {one_block(32), votes}},
      {"reductions", {one_block(32), reductions}},
      {"bits", {one_block(1), bits}},
      {"shared_atomics", {one_block(128, 64), shared_atomics}},
      {"global_atomics", {{4, 64, 2, 0, false, nullptr}, global_atomics}},
      {"clusters", {{8, 32, 4, 144, false, nullptr}, clusters}},
      {"clusters_of_one", {{2, 32, 1, 144, false, nullptr}, clusters}},
      {"cluster_halves", {{4, 32, 2, 256, false, nullptr}, cluster_halves}},
      {"vectors_and_bytes", {one_block(32, 192), vectors_and_bytes}},
      {"memory_twice", {one_block(32, 128), memory_twice}},
      {"warp_order", {one_block(32, 128), warp_order}},
      {"dependent", {{2, 32, 1, 0, true, nullptr}, dependent}},
      {"after_squares", {{1, 32, 1, 256, true, nullptr}, after_squares, squares}},
      {"many_barriers", {one_block(512), many_barriers}},
      {"order", {{4, 64, 1, 0, false, nullptr}, order}},
  };
  return all;
}

}  // namespace pygen::cuda::self_test
