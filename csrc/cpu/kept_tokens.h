// The tokens of a row that survive all filters, as the results of `sample` hold them.
#pragma once

#include <algorithm>
#include <limits>

#include "common/log_sum.h"
#include "common/sample_params.h"
#include "cpu/row_scores.h"
#include "cpu/survivors.h"

namespace pygen::cpu::PYGEN_ISA {

// The ids of one row, of which only the first `limit` are stored.
struct KeptIds {
  int32_t* const ids;
  const int64_t limit;
  int64_t count = 0;

  PYGEN_INLINE void push(int64_t token_id) {
    if (count < limit) ids[count] = static_cast<int32_t>(token_id);
    ++count;
  }
};

inline void write_none_kept(const KeptParams& kept, int64_t row) {
  kept.counts[row] = 0;
  kept.log_mass[row] = -kInf;
}

// Of a greedy row.
inline void write_one_kept(const KeptParams& kept, int64_t row, int64_t token_id, float score) {
  kept.token_ids[row * kept.limit] = static_cast<int32_t>(token_id);
  kept.counts[row] = 1;
  kept.log_mass[row] = score;
}

// `scores`: the row that `survivors` were taken from.
inline void write_kept(const KeptParams& kept, int64_t row, const RowScores& scores, const Survivors& survivors) {
  KeptIds ids{kept.token_ids + row * kept.limit, kept.limit};
  if (const int32_t* listed = survivors.token_ids()) {
    for (int64_t i = 0; i < survivors.size(); ++i)
      if (survivors.keeps(survivors.scores()[i])) ids.push(listed[i]);
  } else {
    const float lowest = std::max(survivors.low(), -std::numeric_limits<float>::max());
    const F32 low = broadcast(lowest), high = broadcast(survivors.high());
    float buffer[kBlock];
    for (int64_t b = 0; b < scores.blocks(); ++b) {
      if (scores.block_max()[b] / survivors.temperature() < lowest) continue;
      const float* block = survivors.block(b, buffer);
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        const F32 v = load(block + i);
        for (Bits bits = ge(v, low) & ge(high, v); bits != 0; bits &= bits - 1)
          ids.push(b * kBlock + i + __builtin_ctz(bits));
      }
    }
  }
  kept.counts[row] = static_cast<int32_t>(ids.count);
  kept.log_mass[row] = rounded(survivors.log_sum_exp());
}

}  // namespace pygen::cpu::PYGEN_ISA
