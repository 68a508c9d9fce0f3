// The steps that sample and process_logits share: the facts that a scan gives, and the filters of a row.
#pragma once

#include "common/temperature.h"
#include "cuda/largest.cuh"
#include "cuda/row_view.cuh"

namespace pygen::cuda {

// A nucleus is looked for among so many of the largest scores before the whole row is read again: as on the CPU.
constexpr int kNucleus = 256;
constexpr int kTilesPerNucleus = 8;
// A list is asked for 5/8 of its capacity at most. The bound of the largest may give an eighth more tiles than asked
// (largest.cuh), and 2,048 / 1,440 leaves 1.4 scores for each of them.
constexpr int kMaxWanted = kListCapacity * 5 / 8;
// A list that takes more tiles than half of the row saves little.
constexpr int kTilesPerWanted = 2;

struct RowFacts {
  float max_score;  // the largest score before temperature; NaN does not count
  RowStatus status;
};

// After the scan; orders shared memory of the row. `nan`: whether the thread saw one.
template <DType kDType>
PYGEN_DEVICE RowFacts facts_of_scan(const RowScores<kDType>& row, RowTeam& team, bool nan) {
  __syncthreads();
  uint32_t max_key = ordered_key(-kInfinity);
  for (int i = row.layout().first_tile() + thread_index(); i < row.layout().last_tile(); i += kThreads) {
    const uint32_t key = ordered_key(row.maxima().get(i));
    max_key = key > max_key ? key : max_key;
  }
  const uint64_t both =
      team.reduce(static_cast<uint64_t>(max_key) << 1 | static_cast<uint64_t>(nan),
                  [](uint64_t a, uint64_t b) { return ((a > b ? a : b) & ~uint64_t{1}) | ((a | b) & 1); });
  RowFacts facts{value_of_key(static_cast<uint32_t>(both >> 1)), kOk};
  if ((both & 1) != 0) {
    facts.status = kNan;
  } else if (facts.max_score == kInfinity) {
    facts.status = kPosInf;
  } else if (facts.max_score == -kInfinity) {
    facts.status = kAllMasked;
  }
  return facts;
}

// The lowest token whose score is `max_score`, the row's largest; 0 where all are NaN. All threads of the row.
template <DType kDType>
PYGEN_DEVICE int lowest_token_of(const RowScores<kDType>& row, RowTeam& team, float max_score) {
  const auto of_slice = static_cast<uint64_t>(row.lowest_token_of(max_score, team.smem().reduce));
  const uint64_t token = team.reduce(of_slice, Smaller{});
  return token < static_cast<uint64_t>(row.layout().vocab_size()) ? static_cast<int>(token) : 0;
}

// About the masses, in units, of the row and of its tiles with a score of at least `low` over the temperature.
struct TileMasses {
  double all, reaching;
};

// The block needs all tiles' maxima and sums: the leader.
template <DType kDType>
PYGEN_DEVICE TileMasses masses_of_tiles(const RowScores<kDType>& row, float temperature, float largest, float low,
                                        Shared<uint64_t> smem) {
  constexpr float kFiner = 0x1p8f;  // a tile has up to 256 tokens: coarser units keep the sum below 2^63
  uint64_t all = 0, reaching = 0;
  for (int i = thread_index(); i < row.layout().tiles(); i += kThreads) {
    const float max_score = row.maxima().get(i) / temperature;
    if (max_score == -kInfinity) continue;
    const double units = exp_nonpositive(max_score - largest) * static_cast<double>(kMassUnits / kFiner);
    const auto mass = static_cast<uint64_t>(units * row.sums().get(i));
    all += mass;
    reaching += max_score >= low ? mass : 0;
  }
  all = block_reduce(all, Add{}, smem);
  reaching = block_reduce(reaching, Add{}, smem);
  return {static_cast<double>(all) * kFiner, static_cast<double>(reaching) * kFiner};
}

// How many of the largest scores the list of a long row has to hold; 0: no list will do.
PYGEN_DEVICE int wanted_of_list(const Filters& filters, int also, int tiles) {
  int wanted = also;
  switch (first_filter(filters)) {
    case FirstFilter::kNone: break;
    case FirstFilter::kLargest: wanted = largest_needed(filters); break;
    case FirstFilter::kNucleus:
      wanted = max(min(kNucleus, max(tiles / kTilesPerNucleus, 1)), filters.min_tokens_to_keep);
      break;
    case FirstFilter::kThreshold: wanted = filters.min_tokens_to_keep; break;
    case FirstFilter::kDeviation:
    case FirstFilter::kDistribution: return 0;
  }
  return wanted <= tiles / kTilesPerWanted && wanted <= kMaxWanted ? wanted : 0;
}

// Applies the filters to a list of the largest scores where one is enough. Then the threads of the leader call
// on_list(SortedList&, mass of the survivors in units), and all threads of the row get true. False: the filters need
// the whole row. `largest`: the largest score over the temperature. `also`: how many of the largest the caller wants
// where the row has no filters.
template <DType kDType, typename OnList>
PYGEN_DEVICE bool filter_list(const RowScores<kDType>& row, RowTeam& team, const Filters& filters, float largest,
                              int also, const OnList& on_list) {
  const RowSmem& smem = team.smem();
  const float temperature = filters.temperature;
  const int tiles = row.layout().tiles();
  const bool whole = row.layout().vocab_size() <= kListCapacity;
  // A list that may lack some of the survivors' mass.
  const FirstFilter first = first_filter(filters);
  const bool partial = !whole && (first == FirstFilter::kNucleus || first == FirstFilter::kNone);
  const int wanted = whole ? 1 : partial && !row.has_sums() ? 0 : wanted_of_list(filters, also, tiles);
  if (wanted == 0) return false;
  float low = -kInfinity;
  double total = -1.0;
  if (!whole) {
    if (team.leads()) {
      low = bound_of_largest(row.maxima(), tiles, wanted, smem.reduce) / temperature;
      if (first == FirstFilter::kThreshold) low = fminf(low, rounded_up(min_p_cut(filters, largest)));
      if (partial) {
        const TileMasses masses = masses_of_tiles(row, temperature, largest, low, smem.reduce);
        total = masses.all;
        // The tiles that would be gathered cannot hold the nucleus: no score reaches infinity.
        if (first == FirstFilter::kNucleus && masses.reaching < filters.top_p * total * (1 - 2 * kTileMassError))
          low = kInfinity;
      }
    }
    low = float_of(static_cast<uint32_t>(team.from_leader(bits_of(low))));
    if (low == kInfinity) return false;
  }
  row.gather(low, temperature, smem.sums.low, smem.counters, smem.list);
  team.sync();
  bool listed = false;
  if (const int count = static_cast<int>(smem.counters.get(0)); team.leads() && count <= kListCapacity) {
    SortedList list(smem.list, count, smem.sums, smem.reduce, largest, total);
    listed = apply_filters(list, filters, largest);
    if (listed) on_list(list, partial && first == FirstFilter::kNone ? total : static_cast<double>(list.mass()));
  }
  return team.from_leader(static_cast<uint64_t>(listed)) != 0;
}

}  // namespace pygen::cuda
