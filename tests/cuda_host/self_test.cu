// Kernels that use what device.cuh offers, and kernels with one planted mistake each: test_host.py says what has to come
// out of either.
#include "self_test.h"

#include <cstring>
#include <map>

#include "cuda/device.cuh"
#include "runtime/loads.h"

namespace pygen::cuda::self_test {
namespace {

constexpr int kInputs = 64;

PYGEN_DEVICE int index() { return static_cast<int>(threadIdx.x); }

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

__global__ void many_barriers(long long* out, unsigned*) {
  for (int i = 0; i < 100; ++i) __syncthreads();
  if (index() == 0) out[0] = 100;
}

// Any order is a right one.
__global__ void order(long long* out, unsigned*) {
  const auto place = atomicAdd(reinterpret_cast<unsigned long long*>(out), 1);
  out[1 + place] = 64 * blockIdx.x + index();
}

// ---- planted mistakes

__global__ void barrier_of_some(long long*, unsigned*) {
  if (index() < 32) __syncthreads();
}
__global__ void barrier_after_return(long long*, unsigned*) {
  if (index() == 5) return;
  __syncthreads();
}
__global__ void barriers_mixed(long long*, unsigned*) {
  if (index() == 5) {
    __syncthreads_or(1);
  } else {
    __syncthreads();
  }
}
__global__ void barrier_in_a_loop(long long*, unsigned*) {
  for (int i = 0; i < (index() == 63 ? 3 : 2); ++i) __syncthreads();
}
__global__ void cluster_sync_of_some(long long*, unsigned*) {
  if (cluster_rank() == 0) cluster_sync();
}
__global__ void cluster_sync_against_barrier(long long*, unsigned*) {
  if (index() < 32) {
    cluster_sync();
  } else {
    __syncthreads();
  }
}
__global__ void warp_of_some(long long* out, unsigned*) {
  if (index() < 20) out[index()] = __shfl_xor_sync(kAllLanes, index(), 1);
}
__global__ void warp_after_return(long long* out, unsigned*) {
  if (index() == 40) return;
  out[index()] = __ballot_sync(kAllLanes, 1);
}
__global__ void warp_functions_mixed(long long* out, unsigned*) {
  if (index() % 2 == 0) {
    out[index()] = __any_sync(kAllLanes, 1);
  } else {
    out[index()] = __all_sync(kAllLanes, 1);
  }
}
__global__ void warp_masks_mixed(long long*, unsigned*) { __syncwarp(index() == 0 ? 0x3u : kAllLanes); }
__global__ void mask_without_caller(long long*, unsigned*) { __syncwarp(0xffffu); }
__global__ void mask_beyond_warp(long long*, unsigned*) { __syncwarp(); }
__global__ void shuffle_from_outside(long long* out, unsigned*) {
  if (index() < 16) out[index()] = __shfl_sync(0xffffu, index(), 20);
}
__global__ void shuffle_width(long long* out, unsigned*) { out[index()] = __shfl_sync(kAllLanes, index(), 0, 12); }

__global__ void bounds_above(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  memory.take<int>(32);
  a.set(index() + 1, 0);
}
__global__ void bounds_below(long long*, unsigned*) {
  SharedMemory memory;
  memory.take<int>(32);
  const auto b = memory.take<int>(32);
  b.from(-1).set(index(), 0);
}
__global__ void bounds_of_vector(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(30);
  if (index() == 0) a.set_vector(28, make_uint4(0, 0, 0, 0));
}
__global__ void bounds_of_launch(long long*, unsigned*) {
  SharedMemory memory;
  memory.take<int>(64);
  memory.take<int>(1);
}
__global__ void never_taken(long long* out, unsigned*) {
  const Shared<int> none;
  out[0] = none.get(0);
}
__global__ void unwritten(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  if (index() != 7) a.set(index(), 1);
  __syncthreads();
  out[index()] = a.get(index());
}
__global__ void unwritten_atomic(long long*, unsigned*) {
  SharedMemory memory;
  memory.take<unsigned>(1).add(0, 1);
}
__global__ void unwritten_by_this_block(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  atomicAdd(reinterpret_cast<int*>(out), 1);
  if (atomicAdd(reinterpret_cast<int*>(out), 0) <= 32) a.set(index(), 1);
  __syncthreads();
  out[1] = a.get(index());
}
__global__ void unwritten_byte(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<uint8_t>(16);
  if (index() < 15) a.set(index(), 1);
  __syncthreads();
  out[0] = a.get_vector(0).x;
}
__global__ void vector_misaligned(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 1);
  __syncthreads();
  out[0] = a.get_vector(2).x;
}
__global__ void load_misaligned(long long* out, unsigned* in) { out[0] = load_vector(in + 1).x; }

__global__ void race_writes(long long*, unsigned*) {
  SharedMemory memory;
  memory.take<int>(1).set(0, index());
}
__global__ void race_write_read(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(64);
  a.set(index(), 0);
  __syncthreads();
  a.set(index(), 1);
  out[index()] = a.get(63 - index());
}
__global__ void race_without_second_barrier(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(1);
  for (int i = 0; i < 3; ++i) {
    if (index() == 0) a.set(0, i);
    __syncthreads();
    out[index()] = a.get(0);
  }
}
__global__ void race_atomic_read(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(1);
  if (index() == 0) a.set(0, 0);
  __syncthreads();
  a.add(0, 1);
  if (index() == 3) out[0] = a.get(0);
}
__global__ void race_atomic_write(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(1);
  if (index() == 0) a.set(0, 0);
  __syncthreads();
  if (index() == 9) {
    a.set(0, 5);
  } else {
    a.max(0, 1);
  }
}
__global__ void race_peek_write(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(1);
  if (index() == 0) a.set(0, 0);
  __syncthreads();
  if (index() == 9) {
    a.set(0, 5);
  } else {
    out[index()] = a.peek(0);
  }
}
__global__ void race_bytes(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<uint8_t>(64);
  a.set(index() == 63 ? 62 : index(), 0);
}
__global__ void race_vector(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(64);
  if (index() == 1) a.set(3, 0);
  if (index() == 33) a.set_vector(0, make_uint4(0, 0, 0, 0));
}
__global__ void race_of_warps(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(64);
  a.set(index(), 1);
  __syncwarp();
  out[index()] = a.get(63 - index());
}
__global__ void race_in_part_of_warp(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 1);
  __syncwarp(index() < 16 ? 0xffffu : 0xffff0000u);
  out[index()] = a.get(31 - index());
}
__global__ void race_after_shuffle(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 1);
  __shfl_sync(kAllLanes, 1, 0);
  out[index()] = a.get(31 - index());
}
__global__ void race_of_blocks(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 0);
  cluster_sync();
  a.set(index(), 1);
  __syncthreads();
  out[index()] = a.of_block(1 - cluster_rank()).get(index());
  cluster_sync();
}
__global__ void remote_before_sync(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  if (cluster_rank() == 0) a.of_block(1).set(index(), 0);
  cluster_sync();
}
__global__ void remote_without_last_sync(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 0);
  cluster_sync();
  out[index()] = a.of_block(1 - cluster_rank()).get(index());
}
__global__ void rank_outside(long long*, unsigned*) {
  SharedMemory memory;
  memory.take<int>(32).of_block(2);
}
__global__ void dependent_without_wait(long long*, unsigned*) {}
__global__ void load_before_wait(long long* out, unsigned* in) {
  if (index() == 0) out[0] = load_scalar(in);
  wait_for_previous_kernel();
}
__global__ void store_to_input(long long*, unsigned* in) { in[3] = 0; }

// ---- for the sanitizers

__global__ void global_bounds(long long* out, unsigned*) { out[1000] = 1; }
__global__ void stack_bounds(long long* out, unsigned* in) {
  unsigned char local[16] = {};
  __syncthreads();
  std::memset(local, 1, in[6]);
  out[0] = local[in[1]];
}
__global__ void shift_too_far(long long* out, unsigned* in) { out[0] = 1 << (in[33] + 7); }

struct Case {
  Launch launch;
  void (*kernel)(long long*, unsigned*);
};

Launch one_block(unsigned threads, unsigned shared = 0) { return {1, threads, 1, shared, false, nullptr}; }
Launch one_cluster(unsigned blocks, unsigned shared = 0) { return {blocks, 32, blocks, shared, false, nullptr}; }

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all = {
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
      {"vectors_and_bytes", {one_block(32, 192), vectors_and_bytes}},
      {"memory_twice", {one_block(32, 128), memory_twice}},
      {"warp_order", {one_block(32, 128), warp_order}},
      {"dependent", {{2, 32, 1, 0, true, nullptr}, dependent}},
      {"many_barriers", {one_block(512), many_barriers}},
      {"order", {{4, 64, 1, 0, false, nullptr}, order}},
      {"barrier_of_some", {one_block(64), barrier_of_some}},
      {"barrier_after_return", {one_block(64), barrier_after_return}},
      {"barriers_mixed", {one_block(64), barriers_mixed}},
      {"barrier_in_a_loop", {one_block(64), barrier_in_a_loop}},
      {"cluster_sync_of_some", {one_cluster(2), cluster_sync_of_some}},
      {"cluster_sync_against_barrier", {one_block(64), cluster_sync_against_barrier}},
      {"warp_of_some", {one_block(64), warp_of_some}},
      {"warp_after_return", {one_block(64), warp_after_return}},
      {"warp_functions_mixed", {one_block(32), warp_functions_mixed}},
      {"warp_masks_mixed", {one_block(32), warp_masks_mixed}},
      {"mask_without_caller", {one_block(32), mask_without_caller}},
      {"mask_beyond_warp", {one_block(40), mask_beyond_warp}},
      {"shuffle_from_outside", {one_block(32), shuffle_from_outside}},
      {"shuffle_width", {one_block(32), shuffle_width}},
      {"bounds_above", {one_block(32, 256), bounds_above}},
      {"bounds_below", {one_block(32, 256), bounds_below}},
      {"bounds_of_vector", {one_block(32, 256), bounds_of_vector}},
      {"bounds_of_launch", {one_block(32, 256), bounds_of_launch}},
      {"never_taken", {one_block(1, 256), never_taken}},
      {"unwritten", {one_block(32, 128), unwritten}},
      {"unwritten_atomic", {one_block(1, 16), unwritten_atomic}},
      {"unwritten_by_this_block", {{2, 32, 1, 128, false, nullptr}, unwritten_by_this_block}},
      {"unwritten_byte", {one_block(32, 16), unwritten_byte}},
      {"vector_misaligned", {one_block(32, 128), vector_misaligned}},
      {"load_misaligned", {one_block(1), load_misaligned}},
      {"race_writes", {one_block(2, 16), race_writes}},
      {"race_write_read", {one_block(64, 256), race_write_read}},
      {"race_without_second_barrier", {one_block(64, 16), race_without_second_barrier}},
      {"race_atomic_read", {one_block(64, 16), race_atomic_read}},
      {"race_atomic_write", {one_block(64, 16), race_atomic_write}},
      {"race_peek_write", {one_block(64, 16), race_peek_write}},
      {"race_bytes", {one_block(64, 64), race_bytes}},
      {"race_vector", {one_block(64, 256), race_vector}},
      {"race_of_warps", {one_block(64, 256), race_of_warps}},
      {"race_in_part_of_warp", {one_block(32, 128), race_in_part_of_warp}},
      {"race_after_shuffle", {one_block(32, 128), race_after_shuffle}},
      {"race_of_blocks", {one_cluster(2, 128), race_of_blocks}},
      {"remote_before_sync", {one_cluster(2, 128), remote_before_sync}},
      {"remote_without_last_sync", {one_cluster(2, 128), remote_without_last_sync}},
      {"rank_outside", {one_cluster(2, 128), rank_outside}},
      {"too_many_threads", {one_block(1025), indices}},
      {"no_blocks", {{0, 32, 1, 0, false, nullptr}, indices}},
      {"too_big_a_cluster", {one_cluster(16), indices}},
      {"half_a_cluster", {{3, 32, 2, 0, false, nullptr}, indices}},
      {"too_much_shared_memory", {one_block(32, 232449), indices}},
      {"dependent_without_wait", {{1, 32, 1, 0, true, nullptr}, dependent_without_wait}},
      {"load_before_wait", {{1, 32, 1, 0, true, nullptr}, load_before_wait}},
      {"store_to_input", {one_block(1), store_to_input}},
      {"global_bounds", {one_block(32), global_bounds}},
      {"stack_bounds", {one_block(32), stack_bounds}},
      {"shift_too_far", {one_block(1), shift_too_far}},
  };
  return all;
}

}  // namespace

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, one] : cases()) all.push_back(name);
  return all;
}

std::vector<long long> run(const std::string& name) {
  const Case& one = cases().at(name);
  std::vector<long long> out(300, 0);
  std::vector<unsigned> in(kInputs);
  for (unsigned i = 0; i < kInputs; ++i) in[i] = 3 * i + 1;
  host::watch("in", in.data(), in.size() * sizeof(unsigned));
  const cudaError_t error = launch_kernel(one.kernel, one.launch, out.data(), in.data());
  const host::LoadCount count = host::count_of("in");
  host::forget_watched();
  out.insert(out.end(), {static_cast<long long>(count.loads), static_cast<long long>(count.bytes), error});
  return out;
}

}  // namespace pygen::cuda::self_test
