// The filters that one row asks for, and what they say before they look at scores.
#pragma once

#include <algorithm>

#include "common/temperature.h"
#include "cpu/row_scores.h"

namespace pygen::cpu::PYGEN_ISA {

// top_h looks at the 100 largest only (Potraghloo et al. 2025, as in transformers).
constexpr int64_t kTopHTokens = 100;

// The filters of one row.
struct Filters {
  Filters() = default;  // none

  Filters(const ShapingParams& params, int64_t row)
      : temperature(knob_at(params.temperature, row)),
        top_h(knob_at(params.top_h, row)),
        top_p(knob_at(params.top_p, row)),
        min_p(knob_at(params.min_p, row)),
        typical_p(knob_at(params.typical_p, row)),
        epsilon_cutoff(knob_at(params.epsilon_cutoff, row)),
        eta_cutoff(knob_at(params.eta_cutoff, row)),
        min_tokens_to_keep(std::min(knob_at(params.min_tokens_to_keep, row), params.vocab_size)) {
    const int64_t k = knob_at(params.top_k, row);
    if (k > 0) top_k = std::max(k, min_tokens_to_keep);
    if (top_k >= params.vocab_size) top_k = 0;
  }

  // To be called for a row that was scanned.
  void fit_temperature(const RowScores& row) {
    if (row.status() == kOk && !greedy()) temperature = fitting_temperature(temperature, row.max_score());
  }

  bool greedy() const { return temperature == 0.0f; }
  bool any() const {
    return top_h > 0 || top_k > 0 || top_p < 1 || min_p > 0 || typical_p < 1 || epsilon_cutoff > 0 || eta_cutoff > 0;
  }
  // How many of the largest scores hold all that the first filter keeps, ties aside; 0: no bound.
  int64_t bound() const { return top_h > 0 ? kTopHTokens : top_k; }

  float temperature = 1, top_h = 0, top_p = 1, min_p = 0, typical_p = 1, epsilon_cutoff = 0, eta_cutoff = 0;
  int64_t top_k = 0;
  int64_t min_tokens_to_keep = 1;
};

}  // namespace pygen::cpu::PYGEN_ISA
