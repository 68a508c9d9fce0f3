// The steps that sample and process_logits share: the facts that a scan gives, and the filters of a row.
#pragma once

#include "common/temperature.h"
#include "cuda/largest.cuh"
#include "cuda/row_search.cuh"
#include "cuda/row_view.cuh"

namespace pygen::cuda {

// A nucleus is looked for among so many of the largest scores before the whole row is read again: as on the CPU.
constexpr int kNucleus = 256;
constexpr int kPeaksPerNucleus = 2;
// A list is asked for 5/8 of its capacity at most. The bound of the largest may give an eighth more tiles than asked
// (largest.cuh), and 2,048 / 1,440 leaves 1.4 scores for each of them.
constexpr int kMaxWanted = kListCapacity * 5 / 8;
// A list that takes more tiles than half of the row saves little.
constexpr int kPeaksPerWanted = 2;

struct RowFacts {
  float max_score;  // the largest score before temperature; NaN does not count
  RowStatus status;
};

// The larger number above the lowest bit, and both lowest bits.
struct LargerAndFlag {
  PYGEN_DEVICE static uint64_t neutral() { return 0; }
  PYGEN_DEVICE uint64_t operator()(uint64_t a, uint64_t b) const {
    return ((a > b ? a : b) & ~uint64_t{1}) | ((a | b) & 1);
  }
  PYGEN_DEVICE static uint64_t of_warp(uint64_t value) {
    const bool flag = __ballot_sync(kAllLanes, (value & 1) != 0) != 0;
    return (Larger::of_warp(value) & ~uint64_t{1}) | static_cast<uint64_t>(flag);
  }
};

// The facts of the candidates. All threads of the block that leads; barriers inside and behind. Where a tile has a NaN,
// its maximum is that of the others from here on.
template <typename Scores>
PYGEN_DEVICE RowFacts facts_of_row(Scores& scores, const RowSmem& smem) {
  const auto look = [&]() {
    uint32_t max_key = ordered_key(-kInfinity);
    bool nan = false;
#pragma unroll 1
    for (int i = thread_index(); i < scores.candidates(); i += kThreads) {
      const float score = scores.candidate(i);
      nan |= score != score;
      const uint32_t key = ordered_key(score != score ? -kInfinity : score);
      max_key = key > max_key ? key : max_key;
    }
    return block_reduce(static_cast<uint64_t>(max_key) << 1 | static_cast<uint64_t>(nan), LargerAndFlag{}, smem.reduce);
  };
  RowFacts facts{0.0f, kOk};
  uint64_t found;
#pragma unroll 1
  for (;;) {
    found = look();
    if ((found & 1) == 0 || facts.status == kNan) break;
    facts.status = kNan;
    drop_nans(scores);
  }
  facts.max_score = value_of_key(static_cast<uint32_t>(found >> 1));
  if (facts.status == kOk && facts.max_score == kInfinity) facts.status = kPosInf;
  if (facts.status == kOk && facts.max_score == -kInfinity) facts.status = kAllMasked;
  return facts;
}

// The lowest token whose score is `max_score`, the row's largest; 0 where all are NaN. All threads of the block that
// leads.
template <typename Scores>
PYGEN_DEVICE int lowest_token_of(const Scores& scores, const RowSmem& smem, float max_score) {
  const int token = lowest_token_in(scores, max_score, smem.sums.low, smem.counters, smem.reduce);
  return token < scores.layout().vocab_size() ? token : 0;
}

// About the masses, in units, of the row and of its candidates with a score of at least `low` over the temperature.
struct Masses {
  double all, reaching;
};

template <typename Scores>
PYGEN_DEVICE Masses masses_of_row(const Scores& scores, float temperature, float largest, float low,
                                  Shared<uint64_t> smem) {
  constexpr float kFiner = 0x1p10f;  // coarser units: a double holds every sum of 2^20 masses
  uint64_t all = 0, reaching = 0;
#pragma unroll 1
  for (int i = thread_index(); i < scores.candidates(); i += kThreads) {
    const float max_score = scores.candidate(i) / temperature;
    if (max_score == -kInfinity) continue;
    const double units = exp_nonpositive(max_score - largest) * static_cast<double>(kMassUnits / kFiner);
    const auto mass = static_cast<uint64_t>(units * scores.mass_of_candidate(i));
    all += mass;
    reaching += max_score >= low ? mass : 0;
  }
  all = block_reduce(all, Add{}, smem);
  reaching = block_reduce(reaching, Add{}, smem);
  return {static_cast<double>(all) * kFiner, static_cast<double>(reaching) * kFiner};
}

// How many of the largest scores the list of a long row has to hold; 0: no list will do.
PYGEN_DEVICE int wanted_of_list(const Filters& filters, int also, int peaks) {
  int wanted = also;
  switch (first_filter(filters)) {
    case FirstFilter::kNone: break;
    case FirstFilter::kLargest: wanted = largest_needed(filters); break;
    case FirstFilter::kNucleus:
      wanted = max(min(kNucleus, max(peaks / kPeaksPerNucleus, 1)), filters.min_tokens_to_keep);
      break;
    case FirstFilter::kThreshold: wanted = filters.min_tokens_to_keep; break;
    case FirstFilter::kDeviation:
    case FirstFilter::kDistribution: return 0;
  }
  return wanted <= peaks / kPeaksPerWanted && wanted <= kMaxWanted ? wanted : 0;
}

// Applies the filters to a list of the largest scores where one is enough, calls on_list(SortedList&, mass of the
// survivors in units) and returns true. False: the filters need the whole row. `largest`: the largest score over the
// temperature. `also`: how many of the largest the caller wants where the row has no filters. All threads of the block
// that leads.
template <typename Scores, typename OnList>
PYGEN_DEVICE bool filter_list(const Scores& scores, const RowSmem& smem, const Filters& filters, float largest,
                              int also, const OnList& on_list) {
  const float temperature = filters.temperature;
  const bool whole = scores.layout().vocab_size() <= kListCapacity;
  // A list that may lack some of the survivors' mass.
  const FirstFilter first = first_filter(filters);
  const bool partial = !whole && (first == FirstFilter::kNucleus || first == FirstFilter::kNone);
  const int wanted = whole ? 1 : partial && !scores.has_sums() ? 0 : wanted_of_list(filters, also, scores.peaks());
  if (wanted == 0) return false;
  float low = -kInfinity;
  double total = -1.0;
  if (!whole) {
    low = bound_of_largest([&](int i) { return scores.candidate(i); }, scores.candidates(), wanted, smem) / temperature;
    if (first == FirstFilter::kThreshold) low = fminf(low, rounded_up(min_p_cut(filters, largest)));
    if (partial) {
      const Masses masses = masses_of_row(scores, temperature, largest, low, smem.reduce);
      total = masses.all;
      // The tiles that would be gathered cannot hold the nucleus.
      if (first == FirstFilter::kNucleus &&
          masses.reaching < filters.top_p * total * (1 - 2 * tile_mass_error(largest)))
        return false;
    }
  }
  gather(scores, low, temperature, smem.sums.low, smem.counters, smem.list);
  const int count = static_cast<int>(smem.counters.get(0));
  if (count > kListCapacity) return false;
  SortedList list(smem.list, count, smem.sums, smem.reduce, largest, total);
  if (!apply_filters(list, filters, largest)) return false;
  on_list(list, partial && first == FirstFilter::kNone ? total : static_cast<double>(list.mass()));
  return true;
}

}  // namespace pygen::cuda
