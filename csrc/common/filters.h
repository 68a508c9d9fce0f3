// The filters of one row and their order, once for the CPU and for CUDA. They act on a view of the row's scores over
// the temperature: cpu/survivors.h, cuda/sorted_list.cuh or cuda/row_view.cuh. A view offers
//   keep_top_h(h)                  the rule of top_h; no other filter but top_n_sigma comes before
//   keep_largest(n)                exactly n of the survivors; of equal scores the lowest ids
//   keep_largest_and_ties(n)       all that are as large as the n-th
//   keep_nucleus(p, n)             the rule of top_p, at least n; of equal scores the highest ids. False: the view
//                                  does not hold enough of the row to tell
//   keep_at_least(score)
//   holds_at_least(score, n)       whether n survivors are as large
//   keep_typical(center, p, n)     the nearest to `center` up to a mass of p, and the n nearest; of equal distances
//                                  the lowest ids
//   distribution()                 of the survivors
//   standard_deviation()           of the scores of the whole row, -inf left out; asked for by the first filter alone
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/host_device.h"
#include "common/log.h"
#include "common/sample_params.h"

namespace pygen {

// top_h considers the 100 largest scores only (Potraghloo et al. 2025, as in transformers).
constexpr int kTopHTokens = 100;

struct Distribution {
  double mass;     // sum of e^(score - largest)
  double entropy;  // of the normalised probabilities, in nats
};

// The filters that one row asks for; by default none. Counts are at most the size of the vocabulary.
struct Filters {
  float temperature = 1;
  int min_tokens_to_keep = 1;
#define PYGEN_FILTER(type, name, acts, neutral) \
  std::conditional_t<std::is_same_v<type, float>, float, int> name = neutral;
#include "common/knobs.def"
};

PYGEN_HOST_DEVICE float filter_value(const Knob<float>& knob, int64_t row, int64_t /*vocab_size*/) {
  return knob_at(knob, row);
}
PYGEN_HOST_DEVICE int filter_value(const Knob<int64_t>& knob, int64_t row, int64_t vocab_size) {
  const int64_t count = knob_at(knob, row);
  return static_cast<int>(count < vocab_size ? count : vocab_size);
}

// top_k, as it acts beside min_tokens_to_keep.
PYGEN_HOST_DEVICE void settle_top_k(Filters& filters, int64_t vocab_size) {
  if (filters.top_k > 0 && filters.top_k < filters.min_tokens_to_keep) filters.top_k = filters.min_tokens_to_keep;
  if (filters.top_k >= vocab_size) filters.top_k = 0;
}

PYGEN_HOST_DEVICE Filters filters_of(const ShapingParams& params, int64_t row) {
  Filters filters;
  filters.temperature = knob_at(params.temperature, row);
  filters.min_tokens_to_keep = filter_value(params.min_tokens_to_keep, row, params.vocab_size);
#define PYGEN_FILTER(type, name, acts, neutral) filters.name = filter_value(params.name, row, params.vocab_size);
#include "common/knobs.def"
  settle_top_k(filters, params.vocab_size);
  return filters;
}

PYGEN_HOST_DEVICE bool is_greedy(const Filters& filters) { return filters.temperature == 0.0f; }

PYGEN_HOST_DEVICE bool has_filters(const Filters& filters) {
#define PYGEN_FILTER(type, name, acts, neutral) || filters.name acts neutral
  return false
#include "common/knobs.def"
      ;
}

// What the first of the row's filters looks at.
enum class FirstFilter { kNone, kDeviation, kLargest, kNucleus, kThreshold, kDistribution };

PYGEN_HOST_DEVICE FirstFilter first_filter(const Filters& filters) {
  if (filters.top_n_sigma > 0) return FirstFilter::kDeviation;
  if (filters.top_h > 0 || filters.top_k > 0) return FirstFilter::kLargest;
  if (filters.top_p < 1) return FirstFilter::kNucleus;
  if (filters.min_p > 0) return FirstFilter::kThreshold;
  return has_filters(filters) ? FirstFilter::kDistribution : FirstFilter::kNone;
}

// How many of the largest scores hold all that a first filter of kind kLargest keeps, ties aside.
PYGEN_HOST_DEVICE int largest_needed(const Filters& filters) { return filters.top_h > 0 ? kTopHTokens : filters.top_k; }

// The smallest float that is not below.
PYGEN_HOST_DEVICE_COLD float rounded_up(double value) {
  const float nearest = static_cast<float>(value);
  return nearest < value ? nextafterf(nearest, __builtin_huge_valf()) : nearest;
}

// The score below which top_n_sigma removes tokens, were there no min_tokens_to_keep.
PYGEN_HOST_DEVICE double top_n_sigma_cut(const Filters& filters, float largest, double standard_deviation) {
  return fmax(largest - filters.top_n_sigma * standard_deviation, -3.4028234663852886e38);
}

// The score below which min_p removes tokens, were there no min_tokens_to_keep.
PYGEN_HOST_DEVICE double min_p_cut(const Filters& filters, float largest) {
  return largest + ln(static_cast<double>(filters.min_p));
}

// Keeps scores >= cut and the n largest: exactly as many, or with all ties of the last.
template <typename View>
PYGEN_KERNEL void keep_above(View& view, double cut, int n, bool exactly) {
  const float low = rounded_up(cut);
  if (view.holds_at_least(low, n)) {
    view.keep_at_least(low);
  } else if (exactly) {
    view.keep_largest(n);
  } else {
    view.keep_largest_and_ties(n);
  }
}

// `largest`: the row's largest score over the temperature. False: the view holds too little of the row, and what is
// left of it means nothing.
template <typename View>
PYGEN_KERNEL bool apply_filters(View& view, const Filters& filters, float largest) {
  const int n = filters.min_tokens_to_keep;
  // Tang et al. 2024.
  if (filters.top_n_sigma > 0)
    keep_above(view, top_n_sigma_cut(filters, largest, view.standard_deviation()), n, /*exactly=*/false);
  if (filters.top_h > 0) view.keep_top_h(filters.top_h);
  if (filters.top_k > 0) view.keep_largest_and_ties(filters.top_k);
  if (filters.top_p < 1) {
    if (!view.keep_nucleus(filters.top_p, n)) return false;
  }
  if (filters.min_p > 0) keep_above(view, min_p_cut(filters, largest), n, /*exactly=*/true);
  // Meister et al. 2023: the tokens whose surprise is nearest to the entropy, until their mass reaches typical_p.
  if (filters.typical_p < 1) {
    const Distribution d = view.distribution();
    view.keep_typical(static_cast<float>(largest + ln(d.mass) - d.entropy), filters.typical_p, n);
  }
  if (filters.epsilon_cutoff > 0) {
    const Distribution d = view.distribution();
    keep_above(view, largest + ln(filters.epsilon_cutoff * d.mass), n, /*exactly=*/false);
  }
  // Hewitt et al. 2022: keep p >= min(eta, sqrt(eta) e^-entropy).
  if (filters.eta_cutoff > 0) {
    const Distribution d = view.distribution();
    const double eta = filters.eta_cutoff;
    const double floor = fmin(eta, sqrt(eta) * exp(-d.entropy));
    keep_above(view, largest + ln(floor * d.mass), n, /*exactly=*/false);
  }
  return true;
}

}  // namespace pygen
