// Asynchronous copies, and kernels with one planted mistake each.
#include "cuda/device.cuh"
#include "self_test.h"

namespace pygen::cuda::self_test {
namespace {

// Each of four threads has a ring of two slots, which it fills with four vectors.
__global__ void copies(long long* out, unsigned* in) {
  constexpr int kSlots = 2;
  constexpr int kTurns = 4;
  SharedMemory memory;
  const auto ring = memory.take<unsigned>(4 * kSlots * 4).from(4 * kSlots * index());
  const auto fetch = [&](int turn) {
    if (turn < kTurns) copy_async(ring, turn % kSlots * 4, in + 4 * (4 * turn + index()));
    commit_copies();
  };
  for (int turn = 0; turn < kSlots; ++turn) fetch(turn);
  for (int turn = 0; turn < kTurns; ++turn) {
    wait_for_copies<kSlots - 1>();
    for (int i = 0; i < 4; ++i) out[4 * (4 * turn + index()) + i] = ring.get(turn % kSlots * 4 + i);
    fetch(turn + kSlots);
  }
  wait_for_copies<0>();
}

__global__ void copies_for_the_block(long long* out, unsigned* in) {
  SharedMemory memory;
  const auto all = memory.take<unsigned>(kInputs);
  if (index() < kInputs / 4) copy_async(all, 4 * index(), in + 4 * index());
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  for (int i = 0; i < kInputs; ++i) out[index()] += all.get(i);
}

// What the mistakes below begin with: the 16 bytes of the first of them.
PYGEN_DEVICE Shared<unsigned> copied_by(int thread, unsigned* in) {
  SharedMemory memory;
  const auto slot = memory.take<unsigned>(4);
  if (index() == thread) copy_async(slot, 0, in);
  if (index() == thread) commit_copies();
  return slot;
}

__global__ void copy_read_without_wait(long long* out, unsigned* in) {
  out[0] = copied_by(0, in).get(0);
  wait_for_copies<0>();
}
__global__ void copy_read_before_its_group(long long* out, unsigned* in) {
  const auto slot = copied_by(0, in);
  commit_copies();
  wait_for_copies<2>();
  out[0] = slot.get_vector(0).y;
  wait_for_copies<1>();
  out[1] = slot.get_vector(0).y;
}
__global__ void copy_outside_of_groups(long long* out, unsigned* in) {
  SharedMemory memory;
  const auto slot = memory.take<unsigned>(4);
  copy_async(slot, 0, in);
  wait_for_copies<0>();
  out[0] = slot.get_vector(0).x;
  commit_copies();
  wait_for_copies<0>();
}
__global__ void copy_written_over(long long*, unsigned* in) {
  copied_by(0, in).set(2, 0);
  wait_for_copies<0>();
}
__global__ void copy_added_to(long long*, unsigned* in) {
  copied_by(0, in).add(3, 1);
  wait_for_copies<0>();
}
__global__ void copy_onto_copy(long long*, unsigned* in) {
  copy_async(copied_by(0, in), 0, in + 4);
  commit_copies();
  wait_for_copies<0>();
}
__global__ void copy_read_by_another(long long* out, unsigned* in) {
  const auto slot = copied_by(3, in);
  __syncthreads();
  if (index() == 40) out[0] = slot.peek(0);
  __syncthreads();
  wait_for_copies<0>();
}
__global__ void copy_left_behind(long long*, unsigned* in) {
  SharedMemory memory;
  const auto slots = memory.take<unsigned>(8);
  copy_async(slots, 0, in);
  commit_copies();
  copy_async(slots, 4, in);
}
__global__ void copy_without_barrier(long long* out, unsigned* in) {
  const auto slot = copied_by(0, in);
  wait_for_copies<0>();
  out[index()] = slot.get(0);
}
__global__ void copy_over_read(long long* out, unsigned* in) {
  SharedMemory memory;
  const auto slot = memory.take<unsigned>(4);
  if (index() < 4) slot.set(index(), 0);
  __syncthreads();
  if (index() == 1) out[0] = slot.get(0);
  if (index() == 0) copy_async(slot, 0, in);
  commit_copies();
  wait_for_copies<0>();
}
__global__ void copy_of_changing_words(long long* out, unsigned*) {
  SharedMemory memory;
  copy_async(memory.take<long long>(2), 0, out);
  commit_copies();
  out[1] = 7;
  wait_for_copies<0>();
}
__global__ void copy_misaligned(long long*, unsigned* in) {
  SharedMemory memory;
  copy_async(memory.take<unsigned>(8), 2, in);
}
__global__ void copy_from_misaligned(long long*, unsigned* in) { copied_by(0, in + 2); }
__global__ void copy_outside(long long*, unsigned* in) {
  SharedMemory memory;
  copy_async(memory.take<unsigned>(4), 4, in);
}
__global__ void copy_to_another_block(long long*, unsigned* in) {
  SharedMemory memory;
  const auto slot = memory.take<unsigned>(4);
  cluster_sync();
  if (blockIdx.x == 0) copy_async(slot.of_block(1), 0, in);
}
__global__ void copy_before_wait_for_kernel(long long*, unsigned* in) {
  copied_by(0, in);
  wait_for_previous_kernel();
  wait_for_copies<0>();
}

// ---- for the sanitizers

__global__ void copy_from_outside(long long*, unsigned* in) { copied_by(0, in + kInputs); }
__global__ void copy_from_freed_memory(long long*, unsigned*) {
  const auto words = new unsigned[4]();
  copied_by(0, words);
  delete[] words;
  wait_for_copies<0>();
}

}  // namespace

const Cases& copies() {
  static const Cases all = {
      {"copies", {one_block(4, 128), copies}},
      {"copies_for_the_block", {one_block(32, 256), copies_for_the_block}},
  };
  return all;
}

const Cases& mistaken_copies() {
  static const Cases all = {
      {"copy_read_without_wait", {one_block(1, 16), copy_read_without_wait}},
      {"copy_read_before_its_group", {one_block(1, 16), copy_read_before_its_group}},
      {"copy_outside_of_groups", {one_block(1, 16), copy_outside_of_groups}},
      {"copy_written_over", {one_block(1, 16), copy_written_over}},
      {"copy_added_to", {one_block(1, 16), copy_added_to}},
      {"copy_onto_copy", {one_block(1, 16), copy_onto_copy}},
      {"copy_read_by_another", {one_block(64, 16), copy_read_by_another}},
      {"copy_left_behind", {one_block(1, 32), copy_left_behind}},
      {"copy_without_barrier", {one_block(64, 16), copy_without_barrier}},
      {"copy_over_read", {one_block(64, 16), copy_over_read}},
      {"copy_of_changing_words", {one_block(1, 16), copy_of_changing_words}},
      {"copy_misaligned", {one_block(1, 32), copy_misaligned}},
      {"copy_from_misaligned", {one_block(1, 16), copy_from_misaligned}},
      {"copy_outside", {one_block(1, 16), copy_outside}},
      {"copy_to_another_block", {one_cluster(2, 16), copy_to_another_block}},
      {"copy_before_wait_for_kernel", {{1, 32, 1, 16, true, nullptr}, copy_before_wait_for_kernel}},
      {"copy_from_outside", {one_block(1, 16), copy_from_outside}},
      {"copy_from_freed_memory", {one_block(1, 16), copy_from_freed_memory}},
  };
  return all;
}

}  // namespace pygen::cuda::self_test
