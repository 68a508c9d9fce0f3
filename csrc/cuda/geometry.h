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

// Up to so many ids the extra tokens of a row may be in shared memory, 8 bytes each.
inline int64_t max_near_ids(const Device& device) { return device.shared_per_block >= 150 * 1024 ? 8192 : 1024; }

// Sweeps that a kernel copies ahead: kDepth of the code that the device runs. The code for tests has the same for all.
inline int depth_of(const Device& device) {
#if defined(__CUDACC__)
  return device.major == 9 || device.major == 10 ? 8 : 4;
#else
  (void)device;
  return kDepth;
#endif
}

// What a kernel has in shared memory beside the slots, the maxima and the extra tokens.
struct RowNeeds {
  bool sums = false;      // it cannot do without them
  int more_per_tile = 0;  // numbers
  size_t bytes = RaceSmem::kBytes;
};

template <DType kType>
size_t shared_of(const RowLaunch& launch, int64_t vocab_size, const RowNeeds& needs = RowNeeds()) {
  return RowScores<kType, true>::shared_bytes(launch, vocab_size) + RowSmem::bytes(launch.geometry) +
         ViewSmem<RowScores<kType, true>>::kBytes +
         static_cast<size_t>(tiles_of(launch.geometry)) * 4 * needs.more_per_tile + needs.bytes + 16;
}

// Where the extra tokens of a row are: in shared memory as far as they fit beside the slots of a scan and half of the
// tiles that it may have.
template <DType kType>
ExtraPlan plan_extra(const ShapingParams& p, const Device& device, const RowNeeds& needs, bool history) {
  constexpr int64_t kEdges = 2 * LogitVector<kType>::kCount;
  const int64_t ids = history ? max_penalized_ids(p) : 0;
  RowLaunch other;
  other.sums = needs.sums;
  other.geometry.groups = kMaxTiles / 2 / kThreads;
  other.geometry.slots = depth_of(device);
  ExtraPlan& plan = other.extra;
  plan.history = ids > 0;
  plan.capacity = static_cast<int>((ids < p.vocab_size ? ids : p.vocab_size) + kEdges);
  if (!plan.history) return plan;
  const auto fits = [&] {
    return shared_of<kType>(other, p.vocab_size, needs) <= static_cast<size_t>(device.shared_per_block);
  };
  plan.tokens_far = ids > max_near_ids(device) || !fits();
  plan.bits_far = !fits();
  plan.far_words = (plan.bits_far ? words_of_row(p.vocab_size) : 0) + (plan.tokens_far ? 2 * plan.capacity : 0);
  return plan;
}

template <DType kType>
ExtraPlan plan_extra(const ShapingParams& p, const Device& device, const RowNeeds& needs) {
  return plan_extra<kType>(p, device, needs, has_history_rules(p) || p.suppress != nullptr);
}

// Bytes of workspace for the extra tokens of all rows, where they are too many for shared memory.
inline size_t extra_workspace(const ShapingParams& p, const Device& device, const RowNeeds& needs = RowNeeds()) {
  const ExtraPlan plan = plan_extra<DType::kBFloat16>(p, device, needs, true);
  return static_cast<size_t>(p.rows) * static_cast<size_t>(plan.far_words) * 4;
}

// Whether a kernel for shaped rows has to run: any token may need more than its logit and the marks of extra tokens in
// shared memory.
template <DType kType>
bool is_shaped(const ShapingParams& p, const Device& device, const RowNeeds& needs = RowNeeds()) {
  return p.bias != nullptr || p.token_bitmask != nullptr || plan_extra<kType>(p, device, needs).far_words > 0;
}

// Cuts rows into slices; `resident`: the slots hold one.
template <DType kType>
Geometry cut(int64_t vocab_size, int slices, bool resident, const Device& device, int max_tiles = kMaxTiles) {
  using Vector = LogitVector<kType>;
  const int64_t vectors = (vocab_size + 2 * (Vector::kCount - 1)) / Vector::kCount;
  const auto sweeps = static_cast<int>((vectors + kThreads - 1) / kThreads);
  Geometry g;
  g.slices = slices;
  g.sweeps = (sweeps + slices - 1) / slices;
  g.tile_sweeps = g.sweeps < kTileSweeps ? g.sweeps : kTileSweeps;
  const auto groups = [&] { return (g.sweeps + g.tile_sweeps - 1) / g.tile_sweeps; };
  while (slices * groups() * kThreads > max_tiles) g.tile_sweeps += kTileSweeps;
  g.groups = groups();
  g.resident = resident;
  g.slots = resident || g.sweeps < depth_of(device) ? g.sweeps : depth_of(device);
  return g;
}

// Cuts rows into up to so many slices. Where shared memory is little, the tiles have no sums, or are fewer.
template <DType kType, typename Fits>
void cut_to_fit(RowLaunch& launch, int64_t vocab_size, int slices, const Device& device, const RowNeeds& needs,
                const Fits& fits) {
  for (int max_tiles = kMaxTiles;; max_tiles /= 2) {
    while (slices * kThreads > max_tiles) slices /= 2;
    launch.geometry = cut<kType>(vocab_size, slices, false, device, max_tiles);
    if (fits(launch)) return;
    launch.sums = needs.sums;
    if (fits(launch) || max_tiles == kThreads) return;
  }
}

// Blocks per row: as many as can run at once, each alone on a multiprocessor. Where the kernel may read the row again
// (`rereads`), as many as it takes to keep the row in shared memory.
template <DType kType>
RowLaunch plan_rows(const ShapingParams& params, const Device& device, Kernel kernel, const RowNeeds& needs, bool sums,
                    bool rereads) {
  RowLaunch launch;
  launch.sums = sums;
  launch.extra = plan_extra<kType>(params, device, needs);
  const int max_cluster = device.major >= 9 && !launch.extra.bits_far ? RowSmem::kMaxBlocks : 1;
  // With all the shared memory of a multiprocessor, which no second block can share then.
  const auto clusters = [&](int size) {
    return clusters_at_once(kernel, static_cast<unsigned>(size), kThreads,
                            static_cast<unsigned>(device.shared_per_block));
  };
  int cluster = 1;
  while (cluster < max_cluster && params.vocab_size >= kLeastSlice * cluster * 2 &&
         params.rows <= clusters(cluster * 2))
    cluster *= 2;
  const auto fits = [&](const RowLaunch& tried) {
    return shared_of<kType>(tried, params.vocab_size, needs) <= static_cast<size_t>(device.shared_per_block);
  };
  cut_to_fit<kType>(launch, params.vocab_size, cluster, device, needs, fits);
  launch.geometry.cluster = launch.geometry.slices;
  if (!rereads || max_cluster == 1) return launch;
  for (int wider = launch.geometry.cluster; wider <= max_cluster && (wider == 1 || clusters(wider) > 0); wider *= 2) {
    RowLaunch resident = launch;
    resident.geometry = cut<kType>(params.vocab_size, wider, true, device);
    resident.geometry.cluster = wider;
    if (fits(resident)) return resident;
  }
  return launch;
}

// From so many rows on, where a row needs no second look, one kernel scans and another draws. Fewer rows are scanned
// faster by clusters, which read a row with up to eight multiprocessors; here a cluster has four at most, and the time of
// a draw, in which one block of a cluster works, is no longer small beside the scan.
constexpr int64_t kManyRows = 32;

// Blocks that scan one of many rows: two on each multiprocessor at once.
inline int slices_of_many(const ShapingParams& p, const Device& device) {
  int slices = 1;
  while (slices < RowSmem::kMaxBlocks && p.rows * slices * 2 <= int64_t{2} * device.multiprocessors &&
         p.vocab_size >= kLeastSlice * slices * 2)
    slices *= 2;
  return slices;
}

// Bytes of workspace for what the scan of many rows leaves, at most.
inline size_t tiles_workspace(const ShapingParams& p) {
  return p.rows < kManyRows ? 0 : static_cast<size_t>(p.rows) * kMaxTiles * 2 * sizeof(float);
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
