// The best tokens of a row with their log-probabilities, as the results of ops hold them.
#pragma once

#include <algorithm>
#include <limits>

#include "common/log_sum.h"
#include "cpu/row_scores.h"
#include "cpu/scratch.h"

namespace pygen::cpu::PYGEN_ISA {

// Writes the `count` best of `candidates`, which it reorders, best first; a shorter list is filled up with id -1 and
// -inf.
inline void write_top_logprobs(Buffer<ScoredToken>& candidates, int64_t count, const LogSum& log_sum, int64_t* ids,
                               float* logprobs) {
  ScoredToken* first = candidates.data();
  const int64_t found = std::min(count, candidates.size());
  std::partial_sort(first, first + found, first + candidates.size(), BetterToken{});
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = i < found ? first[i].token_id : -1;
    logprobs[i] = i < found ? log_probability(first[i].score, log_sum) : -kInf;
  }
}

// Of a row that is not OK.
inline void write_no_top_logprobs(int64_t count, int64_t* ids, float* logprobs) {
  std::fill(ids, ids + count, int64_t{-1});
  std::fill(logprobs, logprobs + count, std::numeric_limits<float>::quiet_NaN());
}

}  // namespace pygen::cpu::PYGEN_ISA
