// sample for many rows of the kind kListed, in two kernels. The first is the scan alone: it needs few registers, so that
// two blocks share a multiprocessor, and no clusters. The second draws, a block per row, and may start while the last
// rows are scanned.
#include "cuda/sample_kernels.h"
#include "cuda/sample_row.cuh"

namespace pygen::cuda {
namespace {

// The plans of both kernels.
struct ManyLaunch {
  RowLaunch scan, draw;
  size_t far_bytes = 0;  // of the workspace in front of the tiles
};

PYGEN_DEVICE FarTiles far_tiles(void* workspace, const ManyLaunch& launch, int64_t row) {
  const int tiles = tiles_of(launch.draw.geometry);
  auto* const maxima = reinterpret_cast<float*>(static_cast<char*>(workspace) + kCounterBytes + launch.far_bytes);
  float* const own = maxima + row * tiles * 2;
  return {own, own + tiles};
}

template <DType kType, bool kSums>
__global__ void __launch_bounds__(kThreads, 2) sample_scan(const __grid_constant__ SampleParams params,
                                                           const __grid_constant__ ManyLaunch launch, void* workspace) {
  const int64_t row = blockIdx.x / launch.scan.geometry.slices;
  const int slice = static_cast<int>(blockIdx.x - row * launch.scan.geometry.slices);
  SharedMemory shared;
  const Shared<uint32_t> slots = shared.take<uint32_t>(launch.scan.geometry.slots * kWordsPerSweep);
  const Shared<uint64_t> reduce = shared.take<uint64_t>(kWarps);
  RowScores<kType, false> scores(params.shaping, launch.scan, row, slice, nullptr, slots, shared);
  scores.start();
  scores.hide_extra(params.shaping, row, false, reduce);
  const float asked = knob_at(params.shaping.temperature, row);
  const float temperature = asked == 0.0f ? 1.0f : asked;
  scores.template scan<kSums ? Keep::kSums : Keep::kMaxima>(temperature, far_tiles(workspace, launch, row));
  trigger_next_kernel();
}

template <DType kType>
__global__ void __launch_bounds__(kThreads, 1) sample_draw(const __grid_constant__ SampleParams params,
                                                           const __grid_constant__ ManyLaunch launch, void* workspace) {
  SampleRow<kType, Rows::kListed> self(params, launch.draw, workspace);
  self.scores.hide_extra(params.shaping, self.row, true, self.smem.reduce);
  wait_for_previous_kernel();
  self.scores.score_extra();
  self.scores.take(far_tiles(workspace, launch, self.row));
  draw_row(self, workspace);
}

template <DType kType>
Error launch_many(const SampleParams& params, const Context& context) {
  const ShapingParams& shaping = params.shaping;
  const RowLaunch rows = plan_of<kType>(params, context.device, address_of(sample_draw<kType>));
  ManyLaunch both;
  both.far_bytes = extra_workspace(shaping, context.device);
  both.draw = rows;
  const auto fits = [&](RowLaunch tried) {
    tried.geometry.slots = 0;
    return shared_of<kType>(tried, shaping.vocab_size) <= static_cast<size_t>(context.device.shared_per_block);
  };
  cut_to_fit<kType>(both.draw, shaping.vocab_size, slices_of_many(shaping, context.device), context.device, RowNeeds(),
                    fits);
  both.scan.geometry = both.draw.geometry;
  both.scan.sums = both.draw.sums;
  both.scan.tiles_far = true;
  both.scan.extra.history = rows.extra.history;
  both.draw.geometry.slots = 0;

  Launch scan;
  scan.blocks = static_cast<unsigned>(shaping.rows * both.scan.geometry.slices);
  scan.threads = kThreads;
  scan.shared = static_cast<unsigned>(static_cast<size_t>(both.scan.geometry.slots) * kWordsPerSweep * 4 + kWarps * 8 +
                                      RowScores<kType, false>::shared_bytes(both.scan, shaping.vocab_size));
  scan.stream = context.stream;
  const auto scanning = both.draw.sums ? sample_scan<kType, true> : sample_scan<kType, false>;
  const Error error = launch_kernel(scanning, scan, params, both, context.workspace);
  if (error != 0) return error;

  Launch draw =
      launch_of_rows(shaping.rows, both.draw.geometry, shared_of<kType>(both.draw, shaping.vocab_size), context);
  draw.dependent = context.device.major >= 9;
  return launch_kernel(sample_draw<kType>, draw, params, both, context.workspace);
}

}  // namespace

Error sample_many(const SampleParams& params, const Context& context) {
  switch (params.shaping.dtype) {
    case DType::kFloat16: return launch_many<DType::kFloat16>(params, context);
    case DType::kBFloat16: return launch_many<DType::kBFloat16>(params, context);
    default: return launch_many<DType::kFloat32>(params, context);
  }
}

}  // namespace pygen::cuda
