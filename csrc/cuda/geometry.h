// Host side: how a launch divides its rows into blocks, slices and tiles.
#pragma once

#include "cuda/kernel_limits.h"
#include "cuda/race.cuh"
#include "cuda/shaping.cuh"

namespace pygen::cuda {

// Positions that a block of a cluster has at least: reading 16 KB takes about as long as a barrier of the cluster.
constexpr int64_t kLeastSlice = 4096;
// Up to here a list of 2,048 scores holds what top_k keeps, unless thousands of scores tie: no second look at the row.
constexpr int64_t kSmallTopK = 256;

struct RowLaunch {
  Geometry geometry;
  int table_slots = 0;
  bool dense = false;  // the penalized tokens are in the workspace
  bool sums = false;   // the scan also sums the tiles' masses; without them a nucleus needs the whole row
};

template <typename T>
bool may_differ(const Knob<T>& knob, T neutral) {
  return knob.per_row != nullptr || knob.value != neutral;
}

inline bool may_have_filters(const ShapingParams& p) {
#define PYGEN_FILTER(type, name, acts, neutral) || may_differ(p.name, type{neutral})
  return false
#include "common/knobs.def"
      ;
}

// Whether the first filter is known to leave few.
inline bool first_filter_is_small(const ShapingParams& p) {
  if (may_differ(p.top_n_sigma, 0.0f)) return false;
  if (p.top_h.per_row == nullptr && p.top_h.value > 0) return true;
  return p.top_k.per_row == nullptr && p.top_k.value > 0 && p.top_k.value <= kSmallTopK &&
         p.min_tokens_to_keep.per_row == nullptr && p.min_tokens_to_keep.value <= kSmallTopK;
}

// Upper bound on the distinct token ids that need special treatment in a row.
inline int64_t max_penalized_ids(const ShapingParams& p) {
  const int64_t length = p.history_steps != nullptr ? p.input_ids_stride : p.history_length;
  return (p.input_ids != nullptr ? length : 0) + (p.suppress != nullptr ? p.suppress_count : 0);
}

inline bool has_history_rules(const ShapingParams& p) {
  return p.input_ids != nullptr &&
         (may_differ(p.repetition_penalty, 1.0f) || may_differ(p.presence_penalty, 0.0f) ||
          may_differ(p.frequency_penalty, 0.0f) || may_differ(p.no_repeat_ngram_size, int64_t{0}));
}

// Up to so many ids the table of penalized tokens is in shared memory. It has twice as many slots of 8 bytes, and the
// rest of a row of 2^20 tokens has to fit beside it.
inline int64_t max_table_ids(const Device& device) { return device.shared_per_block >= 150 * 1024 ? 4096 : 1024; }

// Bytes of workspace for the tables of all rows, where they are too large for shared memory.
inline size_t penalties_workspace(const ShapingParams& p, const Device& device) {
  if (max_penalized_ids(p) <= max_table_ids(device)) return 0;
  return static_cast<size_t>(p.rows) * static_cast<size_t>(p.vocab_size) * 4;
}

template <DType kDType>
size_t shared_of(const RowLaunch& launch) {
  return RowScores<kDType>::shared_bytes(launch.geometry, launch.table_slots, launch.dense, launch.sums) +
         RowSmem::kBytes + RaceSmem::kBytes + 16;
}

template <DType kDType>
void cut(RowLaunch& launch, int64_t vocab_size, int cluster) {
  using Vector = LogitVector<kDType>;
  constexpr int kMaxLog2Tile = Vector::kLog2Count + 5;  // a stripe
  Geometry& g = launch.geometry;
  const int64_t positions = vocab_size + Vector::kCount - 1;
  g.log2_tile = 3;
  while (g.log2_tile < kMaxLog2Tile && (positions >> g.log2_tile) >= kMaxTiles) ++g.log2_tile;
  const int64_t stripes = (positions + RowLayout<kDType>::kStripe - 1) / RowLayout<kDType>::kStripe;
  g.cluster = cluster;
  g.stripes = static_cast<int>((stripes + cluster - 1) / cluster);
  g.tiles = static_cast<int>((stripes * RowLayout<kDType>::kStripe) >> g.log2_tile);
}

// Blocks per row: as many as can run at once, each alone on a multiprocessor. Where the kernel may read the row again
// (`rereads`), as many as it takes to keep the row in shared memory.
template <DType kDType>
RowLaunch plan_rows(const ShapingParams& params, const Device& device, Kernel kernel, bool sums, bool rereads) {
  RowLaunch launch;
  launch.sums = sums;
  if (has_history_rules(params) || params.suppress != nullptr) {
    const int64_t ids = max_penalized_ids(params);
    launch.dense = ids > max_table_ids(device);
    if (!launch.dense && ids > 0)
      for (launch.table_slots = 64; launch.table_slots < 2 * ids;) launch.table_slots *= 2;
  }
  const int max_cluster = device.major >= 9 ? RowSmem::kMaxBlocks : 1;
  // With all the shared memory of a multiprocessor, which no second block can share then.
  const auto clusters = [&](int size) {
    return clusters_at_once(kernel, static_cast<unsigned>(size), kThreads,
                            static_cast<unsigned>(device.shared_per_block));
  };
  int cluster = 1;
  while (cluster < max_cluster && params.vocab_size >= kLeastSlice * cluster * 2 &&
         params.rows <= clusters(cluster * 2))
    cluster *= 2;
  cut<kDType>(launch, params.vocab_size, cluster);
  if (shared_of<kDType>(launch) > static_cast<size_t>(device.shared_per_block)) launch.sums = false;
  if (!rereads || device.major < 9) return launch;
  for (int wider = cluster; wider <= max_cluster && (wider == 1 || clusters(wider) > 0); wider *= 2) {
    RowLaunch resident = launch;
    resident.geometry.resident = true;
    cut<kDType>(resident, params.vocab_size, wider);
    if (shared_of<kDType>(resident) <= static_cast<size_t>(device.shared_per_block)) return resident;
  }
  return launch;
}

// A launch with the blocks of a geometry for every row.
inline Launch launch_of_rows(int64_t rows, const Geometry& geometry, size_t shared, const Context& context) {
  Launch launch;
  launch.blocks = static_cast<unsigned>(rows * geometry.cluster);
  launch.threads = kThreads;
  launch.cluster = static_cast<unsigned>(geometry.cluster);
  launch.shared = static_cast<unsigned>(shared);
  launch.stream = context.stream;
  return launch;
}

}  // namespace pygen::cuda
