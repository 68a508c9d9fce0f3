// process_logits: the scores that `sample` draws from, written out: -inf where a filter or a ban removed the token.
// Bytes per row: one read of the logits and one write of the scores.
#include <algorithm>

#include "common/sample_params.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/row_scores.h"
#include "cpu/survivors.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

void write_unfiltered(const RowScores& row, float temperature, float* out) {
  float buffer[kBlock];
  for (int64_t b = 0; b < row.blocks(); ++b) {
    const float* scores = row.block(b, buffer);
    for (int64_t i = 0; i < row.block_length(b); ++i) out[b * kBlock + i] = scores[i] / temperature;
  }
}

void write_survivors(const Survivors& survivors, int64_t vocab_size, float* out) {
  const float* scores = survivors.scores();
  const int32_t* ids = survivors.token_ids();
  if (ids != nullptr) {
    std::fill(out, out + vocab_size, -kInf);
    for (int64_t i = 0; i < survivors.size(); ++i)
      if (survivors.keeps(scores[i])) out[ids[i]] = scores[i];
    return;
  }
  const F32 low = broadcast(survivors.low()), high = broadcast(survivors.high()), none = broadcast(-kInf);
  int64_t i = 0;
  for (; i + kLanes <= vocab_size; i += kLanes) {
    const F32 v = load(scores + i);
    store(out + i, select(ge(v, low) & ge(high, v), v, none));
  }
  for (; i < vocab_size; ++i) out[i] = survivors.keeps(scores[i]) ? scores[i] : -kInf;
}

void process_row(const ProcessParams& params, int64_t row, int threads) {
  Scratch& scratch = thread_scratch();
  RowScores scores(params.shaping, row, scratch);
  scores.scan(threads);
  Filters filters = filters_of(params.shaping, row);
  fit_temperature(filters, scores);
  float* out = params.out + row * params.out_stride;
  const bool as_they_are = is_greedy(filters) || scores.status() != kOk;
  if (as_they_are || !has_filters(filters))
    return write_unfiltered(scores, as_they_are ? 1.0f : filters.temperature, out);
  Survivors survivors(scores, filters, scratch);
  apply_filters(survivors, filters, survivors.max_score());
  write_survivors(survivors, params.shaping.vocab_size, out);
}

}  // namespace

void process_logits(const ProcessParams& params) {
  const Split split = split_threads(params.shaping.rows, params.shaping.vocab_size, params.shaping.threads);
  parallel_rows(params.shaping.rows, split.over_rows, [&](int64_t row) { process_row(params, row, split.in_row); });
}

}  // namespace pygen::cpu::PYGEN_ISA
