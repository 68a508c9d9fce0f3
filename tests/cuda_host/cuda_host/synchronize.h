// Barriers and the functions of a warp. A thread that calls one is suspended until all that have to take part came.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_host/types.h"

namespace pygen::cuda::host {

enum class BlockOp { kSync, kCount, kAnd, kOr, kArriveAtCluster };

enum class WarpOp {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kMatchAll,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceMinSigned,
  kReduceMaxSigned,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};

int meet_block(BlockOp op, bool predicate);
void wait_for_cluster();
// `value` in the low bits; `argument`: source lane, distance or lane mask of a shuffle.
uint64_t meet_warp(WarpOp op, unsigned mask, uint64_t value, int argument = 0, int width = 32);
unsigned size_of_cluster();
unsigned rank_in_cluster();

template <typename T>
inline uint64_t widened(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a warp exchanges 4 or 8 bytes");
  uint64_t wide = 0;
  std::memcpy(&wide, &value, sizeof(value));
  return wide;
}

template <typename T>
inline T narrowed(uint64_t wide) {
  T value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// What C++ makes of small integers in an expression.
template <typename T>
using Promoted = decltype(+T{});

template <typename T>
PYGEN_FORWARD Promoted<T> shuffled(WarpOp op, unsigned mask, T value, int argument, int width) {
  const Promoted<T> promoted = value;
  return narrowed<Promoted<T>>(meet_warp(op, mask, widened(promoted), argument, width));
}

}  // namespace pygen::cuda::host

PYGEN_FORWARD void __syncthreads() { pygen::cuda::host::meet_block(pygen::cuda::host::BlockOp::kSync, false); }
PYGEN_FORWARD int __syncthreads_count(int predicate) {
  return pygen::cuda::host::meet_block(pygen::cuda::host::BlockOp::kCount, predicate != 0);
}
PYGEN_FORWARD int __syncthreads_and(int predicate) {
  return pygen::cuda::host::meet_block(pygen::cuda::host::BlockOp::kAnd, predicate != 0);
}
PYGEN_FORWARD int __syncthreads_or(int predicate) {
  return pygen::cuda::host::meet_block(pygen::cuda::host::BlockOp::kOr, predicate != 0);
}

PYGEN_FORWARD void __syncwarp(unsigned mask = 0xffffffffu) {
  pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::kSync, mask, 0);
}
PYGEN_FORWARD unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::kBallot, mask, predicate != 0));
}
PYGEN_FORWARD int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::kAny, mask, predicate != 0));
}
PYGEN_FORWARD int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::kAll, mask, predicate != 0));
}

template <typename T>
PYGEN_FORWARD auto __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return pygen::cuda::host::shuffled(pygen::cuda::host::WarpOp::kShuffle, mask, value, source, width);
}
template <typename T>
PYGEN_FORWARD auto __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return pygen::cuda::host::shuffled(pygen::cuda::host::WarpOp::kShuffleUp, mask, value, static_cast<int>(distance),
                                     width);
}
template <typename T>
PYGEN_FORWARD auto __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  return pygen::cuda::host::shuffled(pygen::cuda::host::WarpOp::kShuffleDown, mask, value, static_cast<int>(distance),
                                     width);
}
template <typename T>
PYGEN_FORWARD auto __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return pygen::cuda::host::shuffled(pygen::cuda::host::WarpOp::kShuffleXor, mask, value, lanes, width);
}

template <typename T>
PYGEN_FORWARD unsigned __match_any_sync(unsigned mask, T value) {
  return static_cast<unsigned>(
      pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::kMatchAny, mask, pygen::cuda::host::widened(value)));
}
template <typename T>
PYGEN_FORWARD unsigned __match_all_sync(unsigned mask, T value, int* all) {
  const unsigned found = static_cast<unsigned>(
      pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::kMatchAll, mask, pygen::cuda::host::widened(value)));
  *all = found != 0;
  return found;
}

#define PYGEN_REDUCTION(name, type, op)                                                                        \
  PYGEN_FORWARD type name(unsigned mask, type value) {                                                         \
    return static_cast<type>(                                                                                  \
        pygen::cuda::host::meet_warp(pygen::cuda::host::WarpOp::op, mask, pygen::cuda::host::widened(value))); \
  }
PYGEN_REDUCTION(__reduce_add_sync, unsigned, kReduceAdd)
PYGEN_REDUCTION(__reduce_add_sync, int, kReduceAdd)
PYGEN_REDUCTION(__reduce_min_sync, unsigned, kReduceMin)
PYGEN_REDUCTION(__reduce_min_sync, int, kReduceMinSigned)
PYGEN_REDUCTION(__reduce_max_sync, unsigned, kReduceMax)
PYGEN_REDUCTION(__reduce_max_sync, int, kReduceMaxSigned)
PYGEN_REDUCTION(__reduce_and_sync, unsigned, kReduceAnd)
PYGEN_REDUCTION(__reduce_or_sync, unsigned, kReduceOr)
PYGEN_REDUCTION(__reduce_xor_sync, unsigned, kReduceXor)
#undef PYGEN_REDUCTION

namespace pygen::cuda {

PYGEN_FORWARD unsigned cluster_size() { return host::size_of_cluster(); }
PYGEN_FORWARD unsigned cluster_rank() { return host::rank_in_cluster(); }
PYGEN_FORWARD unsigned cluster_index() { return blockIdx.x / host::size_of_cluster(); }
PYGEN_FORWARD void cluster_arrive() { host::meet_block(host::BlockOp::kArriveAtCluster, false); }
PYGEN_FORWARD void cluster_wait() { host::wait_for_cluster(); }
PYGEN_FORWARD void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace pygen::cuda
