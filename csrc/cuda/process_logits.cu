// process_logits: writes the scores that `sample` draws from, -inf where a filter or a ban removed the token. It takes
// the steps of sample up to the filters and reads the row once more. Bytes per row: one read of the logits and one
// write of the scores where a cluster holds the row; elsewhere the second read goes through the cache. All rows have the
// scan of shaped ones: with twice the bytes of the logits to write, or more, it is not what limits the kernel.
#include "cuda/bookkeeping.cuh"
#include "cuda/geometry.h"
#include "cuda/scanned_row.cuh"

namespace pygen::cuda {
namespace {

// The part of a row that is written.
struct Kept {
  Interval interval;
  bool all = true;  // everything, NaN too
  float temperature = 1.0f;

  static constexpr int kWords = 4;
  PYGEN_DEVICE void write(uint64_t (&words)[kWords]) const {
    words[0] = list_entry(interval.low, interval.last_id);
    words[1] = list_entry(interval.high, interval.after_id);
    words[2] = static_cast<uint64_t>(interval.first_id) << 32 | static_cast<uint32_t>(interval.until_id);
    words[3] = static_cast<uint64_t>(all) << 32 | bits_of(temperature);
  }
  PYGEN_DEVICE static Kept read(const uint64_t (&words)[kWords]) {
    const Interval interval{score_of_entry(words[0]),         score_of_entry(words[1]),
                            static_cast<int>(words[2] >> 32), token_of_entry(words[0]),
                            token_of_entry(words[1]),         static_cast<int>(words[2] & 0xFFFFFFFFu)};
    return {interval, words[3] >> 32 != 0, float_of(static_cast<uint32_t>(words[3]))};
  }
};

// The filters of a row of which a list is enough; false: they need the whole row. All threads of the block that leads.
template <typename Scores>
PYGEN_DEVICE bool decide(const ShapingParams& params, int64_t row, Scores& scores, const RowSmem& smem, Kept& kept) {
  const RowFacts facts = facts_of_row(scores, smem);
  if (facts.status != kOk) return true;
  Filters filters = filters_of(params, row);
  filters.temperature = fitting_temperature(filters.temperature, facts.max_score);
  kept.temperature = filters.temperature;
  if (!has_filters(filters)) return true;
  kept.all = false;
  const float largest = facts.max_score / filters.temperature;
  kept.interval.low = facts.max_score;  // where no list is enough, what the others need of the row
  return filter_list(scores, smem, filters, largest, 0,
                     [&](const SortedList& list, double) { kept.interval = list.interval(); });
}

template <int kCount>
PYGEN_DEVICE void write_scores(float* to, const float (&x)[kCount]) {
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) *reinterpret_cast<float4*>(to + i) = float4{x[i], x[i + 1], x[i + 2], x[i + 3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = x[i];
}

template <DType kType>
struct ProcessRow : ScannedRow<kType, true> {
  PYGEN_DEVICE ProcessRow(const ProcessParams& params, const RowLaunch& launch, void* workspace, int turn = 0)
      : ScannedRow<kType, true>(params.shaping, launch, static_cast<uint32_t*>(workspace) + kCounterBytes / 4, turn) {}
};

// Where no list is enough. All threads of the row.
template <DType kType>
PYGEN_COLD void filter_whole_row(const ProcessParams& params, const RowLaunch& launch, void* workspace, float max_score,
                                 float temperature, int extra_count, int turn, uint64_t (&words)[Kept::kWords]) {
  ProcessRow<kType> self(params, launch, workspace, turn);
  self.scores.resume(extra_count);
  Filters filters = filters_of(params.shaping, self.row);
  filters.temperature = temperature;
  const float largest = max_score / temperature;
  RowView<RowScores<kType, true>> view(self.view, self.scores, self.team, temperature, largest);
  apply_filters(view, filters, largest);
  Kept{view.interval(), false, temperature}.write(words);
}

template <DType kType>
__global__ void __launch_bounds__(kThreads, 1) process_rows(const __grid_constant__ ProcessParams params,
                                                            const __grid_constant__ RowLaunch launch, void* workspace) {
  constexpr int kCount = LogitVector<kType>::kCount;
  ProcessRow<kType> self(params, launch, workspace);
  auto& scores = self.scores;
  const bool leads = self.team.leads();
  const Filters filters = filters_of(params.shaping, self.row);
  // Nothing is removed and nothing divided: no scan is needed.
  const bool as_it_is = is_greedy(filters) || (filters.temperature == 1.0f && !has_filters(filters));
  if (!as_it_is) scores.start();
  scores.hide_extra(params.shaping, self.row, leads, self.smem.reduce);
  if (leads) scores.score_extra();
  Kept kept;
  if (!as_it_is) {
    if (scores.has_sums()) {
      scores.template scan<Keep::kSums>(filters.temperature, NoVisit{});
    } else {
      scores.template scan<Keep::kMaxima>(filters.temperature, NoVisit{});
    }
    scores.bring_together(launch.geometry.cluster);
    uint64_t words[Kept::kWords] = {};
    bool decided = true;
    if (leads) {
      decided = decide(params.shaping, self.row, scores, self.smem, kept);
      kept.write(words);
    }
    decided = self.team.from_leader(static_cast<uint64_t>(decided)) != 0;
    self.team.take_from_leader(words);
    kept = Kept::read(words);
    if (!decided) {
      filter_whole_row<kType>(params, launch, workspace, kept.interval.low, kept.temperature, scores.extra().count(),
                              self.team.turn(), words);
      kept = Kept::read(words);
      self.team.sync();
    }
  }

  float* out = params.out + self.row * params.out_stride;
  const RowLayout<kType>& layout = scores.layout();
  for (int group = layout.first_group(); group < layout.last_group(); ++group) {
    const int tile = group * kThreads + thread_index();
    const bool none = !kept.all && !(scores.maxima().get(tile) / kept.temperature >= kept.interval.low);
    for (int i = 0; i < layout.tile_sweeps(); ++i) {
      const int vector = layout.vector_of(tile, i);
      if (!layout.is_full(vector)) continue;
      const int token = layout.token_of(vector);
      float x[kCount];
      if (none) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) x[j] = -kInfinity;
      } else {
        scores.look(vector, x);
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        x[j] = x[j] / kept.temperature;
        if (!kept.all && !kept.interval.keeps(x[j], token + j)) x[j] = -kInfinity;
      }
      write_scores(out + token, x);
    }
  }
  self.team.sync();
  if (!leads) return;
  for (int i = thread_index(); i < scores.extra().count(); i += kThreads) {
    const int token = scores.extra().token(i);
    const float score = scores.extra().score(i) / kept.temperature;
    out[token] = kept.all || kept.interval.keeps(score, token) ? score : -kInfinity;
  }
}

template <DType kType>
Error launch_process(const ProcessParams& params, const Context& context) {
  const ShapingParams& shaping = params.shaping;
  const bool small = first_filter_is_small(shaping);
  const bool sums = may_differ(shaping.top_p, 1.0f) && !small;
  const bool rereads = !small && (may_have_filters(shaping) || may_differ(shaping.temperature, 1.0f));
  const auto kernel = process_rows<kType>;
  const RowLaunch rows = plan_rows<kType>(shaping, context.device, address_of(kernel), RowNeeds(), sums, rereads);
  const Launch launch =
      launch_of_rows(shaping.rows, rows.geometry, shared_of<kType>(rows, shaping.vocab_size), context);
  return launch_kernel(kernel, launch, params, rows, context.workspace);
}

}  // namespace

size_t process_logits_workspace(const ProcessParams& params, const Device& device) {
  return kCounterBytes + extra_workspace(params.shaping, device);
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
