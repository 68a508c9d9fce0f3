// The tokens of a row that survive all filters, as the results of `sample` hold them.
#pragma once

#include "common/log_sum.h"
#include "common/sample_params.h"
#include "cuda/row_view.cuh"

namespace pygen::cuda {

// The threads of the block that leads call. The thread that writes is that of `finish_row`, which may write again.
PYGEN_COLD void write_kept_count(const KeptParams& kept, int64_t row, int count, LogSum log_sum) {
  if (thread_index() != 0) return;
  kept.counts[row] = count;
  kept.log_mass[row] = count > 0 ? rounded(log_sum) : -kInfinity;
}

// Of a row that is greedy, or of status other than OK: its token alone, or none.
PYGEN_COLD void write_kept_undrawn(const KeptParams& kept, int64_t row, bool is_ok, int token, float score) {
  if (thread_index() == 0 && is_ok) kept.token_ids[row * kept.limit] = token;
  write_kept_count(kept, row, is_ok ? 1 : 0, {score, 0.0});
}

// The tokens of entries [begin, end) of a list, ascending, from index `first` of the row on. All threads of the block
// that leads.
PYGEN_COLD void write_kept_ids(const KeptParams& kept, int64_t row, Shared<uint64_t> list, int begin, int end,
                               int first) {
  int32_t* const ids = kept.token_ids + row * kept.limit + first;
#pragma unroll 1
  for (int i = begin + thread_index(); i < end; i += kThreads) {
    const int token = token_of_entry(list.get(i));
    int rank = 0;
    for (int other = begin; other < end; ++other) rank += token_of_entry(list.get(other)) < token ? 1 : 0;
    ids[rank] = token;
  }
}

PYGEN_COLD void write_kept_list(const KeptParams& kept, int64_t row, Shared<uint64_t> list, int begin, int end,
                                LogSum log_sum) {
  write_kept_count(kept, row, end - begin, log_sum);
  if (end - begin <= kept.limit) write_kept_ids(kept, row, list, begin, end, 0);
}

// Where they are too many for one list, they are listed by ranges of ids. All threads of the row.
template <typename View>
PYGEN_DEVICE void write_kept_of_view(const SampleParams& params, int64_t row, const View& view, const RowTeam& team,
                                     const LogSum& log_sum) {
  constexpr int kRangeBits = 11;
  static_assert(1 << kRangeBits == kListCapacity);
  const KeptParams& kept = params.kept;
  const int count = view.count();
  if (team.leads()) write_kept_count(kept, row, count, log_sum);
  if (count > kept.limit) return;
  const int bits = count <= kListCapacity ? 31 : kRangeBits;
  int written = 0;
#pragma unroll 1
  for (int64_t first = 0; first < params.shaping.vocab_size; first += int64_t{1} << bits) {
    const int found = view.list_ids(static_cast<int>(first), bits);
    if (team.leads()) write_kept_ids(kept, row, team.smem().list, 0, found, written);
    written += found;
    team.sync();
  }
}

}  // namespace pygen::cuda
