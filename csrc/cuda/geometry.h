// Host side: how a launch cuts its rows.
#pragma once

#include "cuda/launchers.h"
#include "cuda/race.cuh"
#include "cuda/shaping.cuh"

namespace pygen::cuda {

// A block of a cluster shall have this many positions at least: less takes no longer than the barriers that it costs.
constexpr int64_t kLeastSlice = 4096;
// Scalar top_k up to here never makes a whole row be looked at again, unless thousands of scores tie.
constexpr int64_t kSmallTopK = 256;

struct RowLaunch {
  Geometry geometry;
  int table_slots = 0;
  bool dense = false;  // penalized lie in the workspace
  bool sums = false;   // of the tiles' masses; without them a nucleus is looked for in the whole row
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

// At max_cluster.
inline int64_t max_penalized_ids(const ShapingParams& p) {
  const int64_t length = p.history_steps != nullptr ? p.input_ids_stride : p.history_length;
  return (p.input_ids != nullptr ? length : 0) + (p.suppress != nullptr ? p.suppress_count : 0);
}

inline bool has_history_rules(const ShapingParams& p) {
  return p.input_ids != nullptr &&
         (may_differ(p.repetition_penalty, 1.0f) || may_differ(p.presence_penalty, 0.0f) ||
          may_differ(p.frequency_penalty, 0.0f) || may_differ(p.no_repeat_ngram_size, int64_t{0}));
}

// Ids of history and suppression up to which the table of penalized lies in shared memory: twice as many slots of 8
// bytes, beside which the rest of a row of 2^20 still has to fit.
inline int64_t max_table_ids(const Device& device) { return device.shared_per_block >= 150 * 1024 ? 4096 : 1024; }

// Bytes of the words of all rows, where it does not.
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

// One block fills a multiprocessor, and a cluster needs several of one group of them: an H100 has 132, and takes 132
// / 120 / 64 blocks in clusters of 2 / 4 / 8.
inline int64_t blocks_at_once(const Device& device, int cluster) {
  const int64_t all = device.multiprocessors;
  return cluster == 8 ? all / 2 : cluster == 4 ? all * 10 / 11 : all;
}

// Blocks per row: as many as find a multiprocessor of their own; where the row may be looked at again, as many as it
// takes to keep it in shared memory.
template <DType kDType>
RowLaunch plan_rows(const ShapingParams& params, const Device& device, bool sums, bool rereads) {
  RowLaunch launch;
  launch.sums = sums;
  if (has_history_rules(params) || params.suppress != nullptr) {
    const int64_t ids = max_penalized_ids(params);
    launch.dense = ids > max_table_ids(device);
    if (!launch.dense && ids > 0)
      for (launch.table_slots = 64; launch.table_slots < 2 * ids;) launch.table_slots *= 2;
  }
  const int max_cluster = device.major >= 9 ? RowSmem::kMaxBlocks : 1;
  int cluster = 1;
  while (cluster < max_cluster && params.rows * cluster * 2 <= blocks_at_once(device, cluster * 2) &&
         params.vocab_size >= kLeastSlice * cluster * 2)
    cluster *= 2;
  cut<kDType>(launch, params.vocab_size, cluster);
  if (shared_of<kDType>(launch) > static_cast<size_t>(device.shared_per_block)) launch.sums = false;
  if (!rereads || device.major < 9) return launch;
  for (int wider = cluster; wider <= max_cluster; wider *= 2) {
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
