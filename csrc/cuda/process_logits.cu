// process_logits: writes the scores that `sample` draws from, -inf where a filter or a ban removed the token. It takes
// the steps of sample up to the filters and reads the row once more. Bytes per row: one read of the logits and one
// write of the scores where a cluster holds the row; elsewhere the second read goes through the cache.
#include "cuda/bookkeeping.cuh"
#include "cuda/geometry.h"

namespace pygen::cuda {
namespace {

// The part of a row that is written.
struct Kept {
  Interval interval;
  bool all;           // everything, NaN too
  float temperature;  // the divisor of the scores
};

// Where no list is enough.
template <DType kDType>
PYGEN_COLD Interval filter_whole_row(RowScores<kDType> row, RowTeam team, Filters filters, float largest) {
  RowView<kDType> view(row, team, filters.temperature, largest);
  apply_filters(view, filters, largest);
  return view.interval();
}

// All threads of the row.
template <DType kDType>
PYGEN_DEVICE Kept shape_row(const ShapingParams& params, int64_t row, const RowScores<kDType>& scores, RowTeam& team) {
  Filters filters = filters_of(params, row);
  const bool nan = scores.scan(filters.temperature, [](const auto&, int, float) {});
  const RowFacts facts = facts_of_scan(scores, team, nan);
  if (facts.status != kOk) return {Interval{}, true, 1.0f};
  filters.temperature = fitting_temperature(filters.temperature, facts.max_score);
  if (!has_filters(filters)) return {Interval{}, true, filters.temperature};
  const float largest = facts.max_score / filters.temperature;
  uint64_t broadcast[3] = {};
  const bool listed = filter_list(scores, team, filters, largest, 0, [&](const SortedList& list, double) {
    const Interval interval = list.interval();
    broadcast[0] = list_entry(interval.low, interval.last_id);
    broadcast[1] = list_entry(interval.high, interval.after_id);
    broadcast[2] = static_cast<uint64_t>(interval.first_id) << 32 | static_cast<uint32_t>(interval.until_id);
  });
  if (!listed) return {filter_whole_row(scores, team, filters, largest), false, filters.temperature};
  team.take_from_leader(broadcast);
  const Interval interval{score_of_entry(broadcast[0]),         score_of_entry(broadcast[1]),
                          static_cast<int>(broadcast[2] >> 32), token_of_entry(broadcast[0]),
                          token_of_entry(broadcast[1]),         static_cast<int>(broadcast[2] & 0xFFFFFFFFu)};
  return {interval, false, filters.temperature};
}

template <int kCount>
PYGEN_DEVICE void write_scores(float* out, int token, int vocab_size, const float (&x)[kCount]) {
  float* const to = out + token;
  if (token >= 0 && token + kCount <= vocab_size && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) *reinterpret_cast<float4*>(to + i) = float4{x[i], x[i + 1], x[i + 2], x[i + 3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (token + i >= 0 && token + i < vocab_size) to[i] = x[i];
}

template <DType kDType>
__global__ void __launch_bounds__(kThreads, 1) process_rows(const __grid_constant__ ProcessParams params,
                                                            const __grid_constant__ RowLaunch launch, void* workspace) {
  constexpr int kCount = RowScores<kDType>::kCount;
  const int cluster = launch.geometry.cluster;
  const int64_t row = blockIdx.x / cluster;
  auto* words = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + kCounterBytes);
  uint32_t* dense = launch.dense ? words + row * params.shaping.vocab_size : nullptr;

  SharedMemory shared;
  const RowSmem smem(shared);
  RowTeam team(cluster, smem);
  const RowScores<kDType> scores(params.shaping, launch.geometry, row, launch.table_slots, dense, launch.sums, shared);
  team.sync();
  const Filters filters = filters_of(params.shaping, row);
  // Nothing is removed and nothing divided: no scan is needed.
  const bool as_it_is = is_greedy(filters) || (filters.temperature == 1.0f && !has_filters(filters));
  const Kept kept = as_it_is ? Kept{Interval{}, true, 1.0f} : shape_row(params.shaping, row, scores, team);

  float* out = params.out + row * params.out_stride;
  const RowLayout<kDType>& layout = scores.layout();
  for (int vector = layout.first_vector() + thread_index(); vector < layout.last_vector(); vector += kThreads) {
    float x[kCount];
    const int token = layout.token_of(vector);
    const bool none =
        !kept.all && !(scores.maxima().get(layout.tile_of(vector)) / kept.temperature >= kept.interval.low);
    if (none) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = -kInfinity;
    } else if (as_it_is) {
      scores.look(vector, x);
    } else {
      scores.look_again(vector, x);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] = x[i] / kept.temperature;
      if (!kept.all && !kept.interval.keeps(x[i], token + i)) x[i] = -kInfinity;
    }
    write_scores(out, token, layout.vocab_size(), x);
  }
  __syncthreads();
  scores.penalized().release(params.shaping, row, layout);
}

template <DType kDType>
Error launch_process(const ProcessParams& params, const Context& context) {
  const ShapingParams& shaping = params.shaping;
  const bool small = first_filter_is_small(shaping);
  const bool sums = may_differ(shaping.top_p, 1.0f) && !small;
  const bool rereads = !small && (may_have_filters(shaping) || may_differ(shaping.temperature, 1.0f));
  const RowLaunch rows = plan_rows<kDType>(shaping, context.device, address_of(process_rows<kDType>), sums, rereads);
  const Launch launch = launch_of_rows(shaping.rows, rows.geometry, shared_of<kDType>(rows), context);
  return launch_kernel(process_rows<kDType>, launch, params, rows, context.workspace);
}

}  // namespace

size_t process_logits_workspace(const ProcessParams& params, const Device& device) {
  return kCounterBytes + penalties_workspace(params.shaping, device);
}

Error process_logits(const ProcessParams& params, const Context& context) {
  if (params.shaping.rows == 0) return 0;
  switch (params.shaping.dtype) {
    case DType::kFloat16: return launch_process<DType::kFloat16>(params, context);
    case DType::kBFloat16: return launch_process<DType::kBFloat16>(params, context);
    default: return launch_process<DType::kFloat32>(params, context);
  }
}

}  // namespace pygen::cuda
