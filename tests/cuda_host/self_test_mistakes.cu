// Kernels with one planted mistake each; a launch that the device has to refuse is one too.
#include <cstring>

#include "cuda/device.cuh"
#include "self_test.h"

namespace pygen::cuda::self_test {
namespace {

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
__global__ void cluster_arrive_twice(long long*, unsigned*) {
  cluster_arrive();
  cluster_arrive();
}
__global__ void cluster_wait_alone(long long*, unsigned*) { cluster_wait(); }
__global__ void cluster_arrive_alone(long long*, unsigned*) { cluster_arrive(); }
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
__global__ void race_between_halves(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 0);
  cluster_sync();
  out[index()] = a.of_block(1 - cluster_rank()).get(index());
  cluster_arrive();
  a.set(index(), 1);
  cluster_wait();
}
__global__ void race_after_halves(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  cluster_arrive();
  a.set(index(), 1);
  cluster_wait();
  out[index()] = a.of_block(1 - cluster_rank()).get(index());
  cluster_sync();
}
__global__ void race_in_block_after_halves(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(64);
  cluster_arrive();
  a.set(index(), 1);
  cluster_wait();
  out[index()] = a.get(63 - index());
}
__global__ void remote_before_wait(long long*, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  cluster_arrive();
  if (cluster_rank() == 0) a.of_block(1).set(index(), 0);
  cluster_wait();
  cluster_sync();
}
__global__ void remote_after_last_arrive(long long* out, unsigned*) {
  SharedMemory memory;
  const auto a = memory.take<int>(32);
  a.set(index(), 0);
  cluster_sync();
  cluster_arrive();
  out[index()] = a.of_block(1 - cluster_rank()).get(index());
  cluster_wait();
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

__global__ void global_bounds(long long* out, unsigned*) { out[kOutputs] = 1; }
__global__ void stack_bounds(long long* out, unsigned* in) {
  unsigned char local[16] = {};
  __syncthreads();
  std::memset(local, 1, in[6]);
  out[0] = local[in[1]];
}
__global__ void seven(long long* out, unsigned*) { out[index()] = 7; }
__global__ void read_before_wait(long long* out, unsigned*) {
  const long long early = out[index()];
  wait_for_previous_kernel();
  out[32 + index()] = early;
}
__global__ void write_before_wait(long long* out, unsigned*) {
  if (index() == 31) out[31] = 0;
  wait_for_previous_kernel();
}
__global__ void shift_too_far(long long* out, unsigned* in) { out[0] = 1 << (in[33] + 7); }

__global__ void nothing(long long*, unsigned*) {}

}  // namespace

const Cases& mistakes() {
  static const Cases all = {
      {"barrier_of_some", {one_block(64), barrier_of_some}},
      {"barrier_after_return", {one_block(64), barrier_after_return}},
      {"barriers_mixed", {one_block(64), barriers_mixed}},
      {"barrier_in_a_loop", {one_block(64), barrier_in_a_loop}},
      {"cluster_sync_of_some", {one_cluster(2), cluster_sync_of_some}},
      {"cluster_sync_against_barrier", {one_block(64), cluster_sync_against_barrier}},
      {"cluster_arrive_twice", {one_cluster(2), cluster_arrive_twice}},
      {"cluster_wait_alone", {one_cluster(2), cluster_wait_alone}},
      {"cluster_arrive_alone", {one_cluster(2), cluster_arrive_alone}},
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
      {"race_between_halves", {one_cluster(2, 128), race_between_halves}},
      {"race_after_halves", {one_cluster(2, 128), race_after_halves}},
      {"race_in_block_after_halves", {one_block(64, 256), race_in_block_after_halves}},
      {"remote_before_wait", {one_cluster(2, 128), remote_before_wait}},
      {"remote_after_last_arrive", {one_cluster(2, 128), remote_after_last_arrive}},
      {"remote_before_sync", {one_cluster(2, 128), remote_before_sync}},
      {"remote_without_last_sync", {one_cluster(2, 128), remote_without_last_sync}},
      {"rank_outside", {one_cluster(2, 128), rank_outside}},
      {"too_many_threads", {one_block(1025), nothing}},
      {"no_blocks", {{0, 32, 1, 0, false, nullptr}, nothing}},
      {"too_big_a_cluster", {one_cluster(16), nothing}},
      {"half_a_cluster", {{3, 32, 2, 0, false, nullptr}, nothing}},
      {"too_much_shared_memory", {one_block(32, 232449), nothing}},
      {"dependent_without_wait", {{1, 32, 1, 0, true, nullptr}, dependent_without_wait}},
      {"load_before_wait", {{1, 32, 1, 0, true, nullptr}, load_before_wait}},
      {"store_to_input", {one_block(1), store_to_input}},
      {"global_bounds", {one_block(32), global_bounds}},
      {"stack_bounds", {one_block(32), stack_bounds}},
      {"read_before_wait", {{1, 32, 1, 0, true, nullptr}, read_before_wait, seven}},
      {"write_before_wait", {{1, 32, 1, 0, true, nullptr}, write_before_wait, seven}},
      {"shift_too_far", {one_block(1), shift_too_far}},
  };
  return all;
}

}  // namespace pygen::cuda::self_test
