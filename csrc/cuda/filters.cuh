// The filters of a row in Hugging Face's order, over any view of its scores: the sorted list of the few that can
// survive (sorted_list.cuh) or the whole row (row_view.cuh). A view offers, with all threads that share it calling:
//   keep_top_h(h)                  top_h's rule; it always is the first filter
//   keep_largest(n)                exactly n of the survivors, the lowest ids where scores tie
//   keep_largest_and_ties(n)       all as large as the n-th
//   keep_nucleus(p, n)             top_p's rule with at least n, the highest ids where scores tie; false: the view
//                                  cannot tell
//   keep_at_least(score)
//   holds_at_least(score, n)       whether n survivors are as large
//   keep_typical(center, p, n)     the nearest to `center` up to a mass of p, and the n nearest, of ties the lowest ids
//   distribution()                 of the survivors
#pragma once

#include <cmath>

#include "cuda/row_layout.cuh"

namespace pygen::cuda {

// top_h looks at the 100 largest only (Potraghloo et al. 2025, as in transformers).
constexpr int kTopHTokens = 100;

// Masses are sums of e^(score - largest score) in units of 2^-43: exact, in any order, up to 2^20 tokens.
constexpr float kMassUnits = 0x1p43f;

struct Distribution {
  double mass;     // sum of e^(score - largest)
  double entropy;  // of the normalised probabilities, in nats
};

struct Filters {
  float temperature = 1, top_h = 0, top_p = 1, min_p = 0, typical_p = 1, epsilon_cutoff = 0, eta_cutoff = 0;
  int top_k = 0;
  int min_tokens_to_keep = 1;

  Filters() = default;  // none

  PYGEN_DEVICE Filters(const ShapingParams& params, int64_t row)
      : temperature(knob_at(params.temperature, row)),
        top_h(knob_at(params.top_h, row)),
        top_p(knob_at(params.top_p, row)),
        min_p(knob_at(params.min_p, row)),
        typical_p(knob_at(params.typical_p, row)),
        epsilon_cutoff(knob_at(params.epsilon_cutoff, row)),
        eta_cutoff(knob_at(params.eta_cutoff, row)) {
    const int64_t keep = knob_at(params.min_tokens_to_keep, row);
    const int64_t k = knob_at(params.top_k, row);
    min_tokens_to_keep = static_cast<int>(keep < params.vocab_size ? keep : params.vocab_size);
    if (k > 0 && k < params.vocab_size) top_k = k > min_tokens_to_keep ? static_cast<int>(k) : min_tokens_to_keep;
    if (top_k >= params.vocab_size) top_k = 0;
  }

  PYGEN_DEVICE bool greedy() const { return temperature == 0.0f; }
  PYGEN_DEVICE bool any() const {
    return top_h > 0 || top_k > 0 || top_p < 1 || min_p > 0 || typical_p < 1 || epsilon_cutoff > 0 || eta_cutoff > 0;
  }
  // How many of the largest scores hold all that the first filter keeps, ties aside; 0: no bound.
  PYGEN_DEVICE int bound() const { return top_h > 0 ? kTopHTokens : top_k; }
  PYGEN_DEVICE bool first_is_top_p() const { return bound() == 0 && top_p < 1; }
  PYGEN_DEVICE bool first_is_min_p() const { return bound() == 0 && !(top_p < 1) && min_p > 0; }
};

// The smallest float that is not below.
PYGEN_DEVICE float rounded_up(double value) {
  const float nearest = static_cast<float>(value);
  return nearest < value ? nextafterf(nearest, kInfinity) : nearest;
}

// Keeps scores >= cut and the n largest: exactly as many, or with all ties of the last.
template <typename View>
PYGEN_DEVICE void keep_above(View& view, double cut, int n, bool exactly) {
  const float low = rounded_up(cut);
  if (view.holds_at_least(low, n)) {
    view.keep_at_least(low);
  } else if (exactly) {
    view.keep_largest(n);
  } else {
    view.keep_largest_and_ties(n);
  }
}

// `largest`: of the row's scores over the temperature. False: `view` did not suffice, and what it holds means nothing.
template <typename View>
PYGEN_DEVICE bool apply_filters(View& view, const Filters& filters, float largest) {
  const int n = filters.min_tokens_to_keep;
  if (filters.top_h > 0) view.keep_top_h(filters.top_h);
  if (filters.top_k > 0) view.keep_largest_and_ties(filters.top_k);
  if (filters.top_p < 1) {
    if (!view.keep_nucleus(filters.top_p, n)) return false;
  }
  if (filters.min_p > 0) keep_above(view, largest + log(static_cast<double>(filters.min_p)), n, /*exactly=*/true);
  if (filters.typical_p < 1) {
    const Distribution d = view.distribution();
    view.keep_typical(static_cast<float>(largest + log(d.mass) - d.entropy), filters.typical_p, n);
  }
  if (filters.epsilon_cutoff > 0) {
    const Distribution d = view.distribution();
    keep_above(view, largest + log(filters.epsilon_cutoff * d.mass), n, /*exactly=*/false);
  }
  if (filters.eta_cutoff > 0) {
    const Distribution d = view.distribution();
    const double eta = filters.eta_cutoff;
    const double floor = fmin(eta, sqrt(eta) * exp(-d.entropy));
    keep_above(view, largest + log(floor * d.mass), n, /*exactly=*/false);
  }
  return true;
}

}  // namespace pygen::cuda
