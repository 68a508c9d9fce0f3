// The view of common/filters.h on the CPU: the tokens of one row that the filters have left so far.
//
// Every filter keeps an interval [low, high] of scores: all but `typical` only raise `low`, and ties that a filter
// splits are resolved by writing -inf over the losers in a copy: the lowest ids for top_p, else the highest. So the
// survivors need no list. Where the first filter leaves few, they are gathered from the blocks whose maximum reaches
// it, and the other filters work on that list.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/filters.h"
#include "common/log_sum.h"
#include "common/temperature.h"
#include "cpu/largest.h"
#include "cpu/row_scores.h"
#include "cpu/select.h"

namespace pygen::cpu::PYGEN_ISA {

// Of a row that was scanned.
inline void fit_temperature(Filters& filters, const RowScores& row) {
  if (row.status() == kOk && !is_greedy(filters))
    filters.temperature = fitting_temperature(filters.temperature, row.max_score());
}

// When to gather instead of filtering the whole row. Measured: `sample` of one row of 128,256 normal scores (2,004
// blocks, standard deviation 3) on one core with AVX-512; gathering against the whole row, in microseconds.
//
// The k largest, k <= blocks / 2. 1,500 of them still take 49 against 79; but where large scores are neighbours, each
// of the k block maxima brings up to 64 scores along.
constexpr int64_t kBlocksPerLargest = 2;
// All scores above a threshold, where at most a quarter of the blocks reach it. Even at 5,700 scores in 95 % of the
// blocks gathering takes 74 against 70; with more it loses, 143 against 77 and up to 449 against 79.
constexpr int64_t kBlocksPerThreshold = 4;
// A nucleus is looked for among the 256 largest scores, or as many as an eighth of the blocks: twice as rare as the
// k largest above, because a nucleus that is larger than expected makes the gathering useless.
constexpr int64_t kNucleus = 256;
constexpr int64_t kBlocksPerNucleus = 8;
// The mass of the tail is first estimated from one vector of every few blocks. A nucleus that misses its target by more
// than a tenth of that estimate is given up before the exact sum.
constexpr double kNucleusEstimate = 0.9;
// Sums of equal masses agree within 1e-6 however they are grouped: three float32 additions (1.8e-7) before double.
constexpr double kMassError = 1e-6;
// A score this far below the largest adds less than 2^-44 of the sum, even in a row of 2^20 scores: e^-45 * 2^20.
constexpr float kNegligible = 45.0f;
// Scores that division by the temperature could round to the threshold: 4 ulp, and the smallest normal floats.
constexpr float kDivisionError = 0x1p-21f;
constexpr float kSmallestScores = 1e-37f;

class Survivors {
 public:
  // Takes the row's scores over temperature; `row` must have been scanned and be ok, and not greedy.
  Survivors(const RowScores& row, const Filters& filters, Scratch& scratch) : filters_(filters), scratch_(scratch) {
    max_score_ = row.max_score() / filters_.temperature;
    if (!gather(row)) take_all(row);
  }

  void keep_top_h(float top_h) {
    Buffer<ScoredToken>& best = scratch_.ordered;
    best.reserve(size_);
    best.clear();
    const float* all = scores();
    for (int64_t i = 0; i < size_; ++i)
      if (keeps(all[i])) best.push({all[i], static_cast<int32_t>(i)});
    const int64_t count = std::min<int64_t>(kTopHTokens, best.size());
    std::partial_sort(best.data(), best.data() + count, best.data() + best.size(), BetterToken{});
    double total = 0, entropy = 0;
    double term[kTopHTokens];
    for (int64_t i = 0; i < count; ++i) total += std::exp(static_cast<double>(best[i].score) - best[0].score);
    const double log_total = std::log(total);
    for (int64_t i = 0; i < count; ++i) {
      const double log_prob = static_cast<double>(best[i].score) - best[0].score - log_total;
      term[i] = -std::exp(log_prob) * log_prob;
      entropy += term[i];
    }
    int64_t kept = 0;
    // Summed in the order of the total, so that top_h = 1 keeps all of them.
    for (double reached = 0; kept < count; ++kept) {
      reached += term[kept];
      if (kept > 0 && reached > static_cast<double>(top_h) * entropy) break;
    }
    const float lowest = best[kept - 1].score;
    int64_t num_above = 0, num_equal = 0;
    while (best[num_above].score > lowest) ++num_above;
    for (int64_t i = 0; i < size_; ++i) num_equal += all[i] == lowest;
    cut_at({lowest, static_cast<double>(num_above), num_equal}, kept - num_above, Stay::kLowestIds);
  }

  void keep_largest(int64_t n) { keep_exactly_largest(n, Stay::kLowestIds); }
  void keep_largest_and_ties(int64_t n) { keep_at_least(nth_largest(n).key); }
  void keep_at_least(float low) { low_ = std::max(low_, low); }
  bool holds_at_least(float low, int64_t n) const { return count_at_least(low) >= n; }

  // Keeps a token while the mass before it, largest first and of equal scores the highest id, is below p of all.
  bool keep_nucleus(float p, int64_t n) {
    if (p == 0) {
      keep_exactly_largest(n, Stay::kHighestIds);
      return true;
    }
    // Known only where top_p is the first filter; a gathered nucleus is measured against the mass of the whole row.
    const bool known = total_mass_ >= 0;
    const Target target{known ? p * total_mass_ : -1, p};
    const Cut cut = unbounded()
                        ? select_cut(scores(), size_, ScoreKey{}, UnboundedMassWeight{max_score_}, target, scratch_)
                        : select_cut(scores(), size_, ScoreKey{}, mass_weight(), target, scratch_);
    if (cut.key == -kInf) return true;
    int64_t kept = cut.num_equal;
    if (kept > 1) {
      const double needed = std::ceil((p * (known ? total_mass_ : mass()) - cut.above) / exp_of(cut.key));
      kept = needed >= static_cast<double>(kept) ? kept : std::max<int64_t>(1, static_cast<int64_t>(needed));
    }
    if (n > 1 && count_at_least(std::nextafter(cut.key, kInf)) + kept < n) {
      keep_exactly_largest(n, Stay::kHighestIds);
    } else {
      cut_at(cut, kept, Stay::kHighestIds);
    }
    return true;
  }

  void keep_typical(float center, float p, int64_t n) {
    const TypicalKey key{center};
    float nearest = select_cut(scores(), size_, key, mass_weight(), Target{-1, p}, scratch_).key;
    if (n > 1) {
      const Target count{static_cast<double>(n), 0};
      const Cut cut = select_cut(scores(), size_, key, count_weight(), count, scratch_);
      if (cut.key < nearest && cut.key > -kInf)
        drop_of_ties(key, cut.key, cut.num_equal - static_cast<int64_t>(count.weight - cut.above), Stay::kLowestIds);
      nearest = std::min(nearest, cut.key);
    }
    F32 lowest_negated = broadcast(-kInf), highest = broadcast(-kInf);
    const F32 bar = broadcast(nearest), none = broadcast(-kInf), zero = broadcast(0.0f);
    const CountWeight weight = count_weight();
    for_each_block(scores(), size_, [&](const F32 v[4]) {
      for (int j = 0; j < 4; ++j) {
        const Bits kept = ge(key(v[j]), bar) & gt(weight(v[j]), zero);
        highest = max(highest, select(kept, v[j], none));
        lowest_negated = max(lowest_negated, select(kept, zero - v[j], none));
      }
    });
    low_ = -reduce_max(lowest_negated);
    high_ = reduce_max(highest);
  }

  double standard_deviation() const { return standard_deviation_; }

  Distribution distribution() const {
    Sum mass, energy;
    const MassWeight weight = mass_weight();
    const F32 max_score = broadcast(max_score_), lowest = broadcast(-88.0f);
    for_each_block(scores(), size_, [&](const F32 v[4]) {
      F32 w[4], e[4];
      for (int j = 0; j < 4; ++j) {
        w[j] = weight(v[j]);
        e[j] = w[j] * max(v[j] - max_score, lowest);
      }
      mass.add((w[0] + w[1]) + (w[2] + w[3]));
      energy.add((e[0] + e[1]) + (e[2] + e[3]));
    });
    const double total = mass.total();
    return {total, std::log(total) - energy.total() / total};
  }

  int64_t size() const { return size_; }
  const float* scores() const { return scores_; }
  // Null: the token at position i is i.
  const int32_t* token_ids() const { return gathered_ ? scratch_.token_ids.data() : nullptr; }
  // The 64 scores of a block, -inf past the vocabulary. Only where the survivors are not gathered.
  PYGEN_INLINE const float* block(int64_t b, float* buffer) const {
    const float* scores = scores_ + b * kBlock;
    const int64_t length = std::min(kBlock, size_ - b * kBlock);
    if (length == kBlock) return scores;
    for (int64_t i = 0; i < kBlock; ++i) buffer[i] = i < length ? scores[i] : -kInf;
    return buffer;
  }
  float temperature() const { return filters_.temperature; }
  float low() const { return low_; }
  float high() const { return high_; }
  float max_score() const { return max_score_; }
  // Whether the score at a position survived.
  bool keeps(float score) const { return score >= low_ && score <= high_ && score > -kInf; }

  // Over the survivors.
  LogSum log_sum_exp() const { return {max_score_, std::log(mass())}; }

 private:
  // Takes the scores that reach `threshold`, a score before temperature, and those that division could round to it.
  void gather_at_least(const RowScores& row, float threshold) {
    const float temperature = filters_.temperature;
    threshold -= std::fabs(threshold) * kDivisionError + kSmallestScores;
    gathered_ = true;
    const float* maxima = row.block_max();
    const F32 t = broadcast(threshold);
    float buffer[kBlock];
    int64_t count = 0;
    for (int64_t b = 0; b < row.blocks(); ++b) {
      if (!(maxima[b] >= threshold)) continue;
      const float* block = row.block(b, buffer);
      float* scores = scratch_.scores.reserve(count + kBlock + kSlack);
      int32_t* ids = scratch_.token_ids.reserve(count + kBlock + kSlack);
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        for (Bits bits = ge(load(block + i), t); bits != 0; bits &= bits - 1) {
          const int64_t at = i + __builtin_ctz(bits);
          if (block[at] == -kInf) continue;
          scores[count] = block[at] / temperature;
          ids[count++] = static_cast<int32_t>(b * kBlock + at);
        }
      }
    }
    scores_ = scratch_.scores.data();
    size_ = count;
  }

  // Takes the scores that can survive the first filter; false where that does not pay.
  bool gather(const RowScores& row) {
    switch (first_filter(filters_)) {
      case FirstFilter::kDeviation:
        standard_deviation_ = standard_deviation_of(row);
        return gather_down_to(row, top_n_sigma_cut(filters_, max_score_, standard_deviation_));
      case FirstFilter::kLargest: return gather_largest(row);
      case FirstFilter::kNucleus: return gather_nucleus(row);
      case FirstFilter::kThreshold: return gather_down_to(row, min_p_cut(filters_, max_score_));
      default: return false;
    }
  }

  bool gather_largest(const RowScores& row) {
    const int64_t count = largest_needed(filters_);
    if (count > row.blocks() / kBlocksPerLargest) return false;
    gather_at_least(row, lower_bound_of_largest(row, count));
    return true;
  }

  // `cut`: of the scores over the temperature.
  bool gather_down_to(const RowScores& row, double cut) {
    const int64_t few = row.blocks() / kBlocksPerThreshold;
    if (filters_.min_tokens_to_keep > few) return false;
    const float threshold = std::min(static_cast<float>(cut * filters_.temperature),
                                     lower_bound_of_largest(row, filters_.min_tokens_to_keep));
    if (blocks_at_least(row, threshold) > few) return false;
    gather_at_least(row, threshold);
    return true;
  }

  // top_p comes first: where a few hundred of the largest scores hold its mass, no other is needed.
  bool gather_nucleus(const RowScores& row) {
    const int64_t bound =
        std::max<int64_t>(std::min(kNucleus, row.blocks() / kBlocksPerNucleus), filters_.min_tokens_to_keep);
    if (bound > row.blocks() / kBlocksPerThreshold) return false;
    const float threshold = lower_bound_of_largest(row, bound);
    const double target = filters_.top_p;
    // A sample of the row decides whether the sum over all of it is worth its time.
    const int64_t stride = std::max<int64_t>(1, row.blocks() / kNucleus);
    const MassWeight tail{max_score_, -kInf, threshold / filters_.temperature};
    const double tail_mass = sum_of_blocks(row, stride, 1, tail) * static_cast<double>(4 * stride);
    if (mass_of_maxima(row, threshold) * 4 < target * tail_mass) return false;
    gather_at_least(row, threshold);
    const double gathered = mass();
    if (gathered < kNucleusEstimate * target * (gathered + tail_mass)) return false;
    total_mass_ = sum_of_blocks(row, 1, 4, UnboundedMassWeight{max_score_});
    return gathered * (1 - kMassError) >= target * total_mass_;
  }

  // Of the row's scores over the temperature, -inf left out.
  double standard_deviation_of(const RowScores& row) const {
    const F32 temperature = broadcast(filters_.temperature), none = broadcast(-kInf);
    double sums[kLanes] = {}, squares[kLanes] = {};
    int64_t count = 0;
    float buffer[kBlock];
    for (int64_t b = 0; b < row.blocks(); ++b) {
      const float* block = row.block(b, buffer);
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        const F32 v = load(block + i) / temperature;
        float scores[kLanes];
        store(scores, v);
        count += __builtin_popcount(gt(v, none));
        for (int j = 0; j < kLanes; ++j) {
          const double below = scores[j] > -kInf ? static_cast<double>(max_score_) - scores[j] : 0.0;
          sums[j] += below;
          squares[j] += below * below;
        }
      }
    }
    double sum = 0, square = 0;
    for (int j = 0; j < kLanes; ++j) {
      sum += sums[j];
      square += squares[j];
    }
    const double mean = sum / static_cast<double>(count);
    return std::sqrt(std::max(0.0, square / static_cast<double>(count) - mean * mean));
  }

  // The mass of the blocks' maxima that reach the threshold: rarely less than a quarter of all scores that do.
  double mass_of_maxima(const RowScores& row, float threshold) const {
    double sum = 0;
    for (int64_t b = 0; b < row.blocks(); ++b)
      if (row.block_max()[b] >= threshold) sum += std::exp(row.block_max()[b] / filters_.temperature - max_score_);
    return sum;
  }

  // Sum of a mass over the first `vectors` vectors of every `stride`-th block.
  template <typename Weight>
  double sum_of_blocks(const RowScores& row, int64_t stride, int vectors, const Weight& weight) const {
    const F32 temperature = broadcast(filters_.temperature);
    const bool divide = filters_.temperature != 1.0f;
    const float negligible = (max_score_ - kNegligible) * filters_.temperature;
    float buffer[kBlock];
    Sum sum;
    for (int64_t b = 0; b < row.blocks(); b += stride) {
      if (row.block_max()[b] < negligible) continue;
      const float* scores = row.block(b, buffer);
      F32 masses = broadcast(0.0f);
      for (int j = 0; j < vectors; ++j) {
        const F32 v = load(scores + j * kLanes);
        masses = masses + weight(divide ? v / temperature : v);
      }
      sum.add(masses);
    }
    return sum.total();
  }

  // Takes the whole row: in place where the logits are the scores over the temperature, else a copy.
  void take_all(const RowScores& row) {
    gathered_ = false;
    size_ = row.vocab_size();
    scores_ = filters_.temperature == 1.0f ? row.in_place() : nullptr;
    if (scores_ != nullptr) return;
    float* own = scratch_.scores.reserve(row.blocks() * kBlock + kSlack);
    const F32 temperature = broadcast(filters_.temperature);
    const bool divide = filters_.temperature != 1.0f;
    float buffer[kBlock];
    for (int64_t b = 0; b < row.blocks(); ++b) {
      const float* block = row.block(b, buffer);
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        const F32 v = load(block + i);
        store(own + b * kBlock + i, divide ? v / temperature : v);
      }
    }
    scores_ = own;
  }

  bool unbounded() const { return low_ == -kInf && high_ == kInf; }
  MassWeight mass_weight() const { return {max_score_, low_, high_}; }
  CountWeight count_weight() const { return {low_, high_}; }

  double mass() const {
    return unbounded() ? sum_weights(scores(), size_, UnboundedMassWeight{max_score_})
                       : sum_weights(scores(), size_, mass_weight());
  }

  int64_t count_at_least(float threshold) const {
    int64_t count = 0;
    const float finite = std::max(threshold, -std::numeric_limits<float>::max());
    const F32 low = broadcast(std::max(finite, low_)), high = broadcast(high_);
    for_each_block(scores(), size_, [&](const F32 v[4]) {
      for (int j = 0; j < 4; ++j) count += __builtin_popcount(ge(v[j], low) & ge(high, v[j]));
    });
    return count;
  }

  // Which of equal scores stay where not all do.
  enum class Stay { kLowestIds, kHighestIds };

  // Raises `low` to a cut; of the survivors equal to it, `num_kept` stay.
  void cut_at(const Cut& cut, int64_t num_kept, Stay stay) {
    low_ = std::max(low_, cut.key);
    drop_of_ties(ScoreKey{}, cut.key, cut.num_equal - num_kept, stay);
  }

  // Removes `to_drop` of the survivors whose key is `tied`.
  template <typename Key>
  void drop_of_ties(const Key& key, float tied, int64_t to_drop, Stay stay) {
    if (to_drop <= 0) return;
    float* own = scratch_.scores.reserve(size_ + kSlack);
    if (scores_ != own) std::copy(scores_, scores_ + size_, own);
    scores_ = own;
    const bool from_end = stay == Stay::kLowestIds;
    for (int64_t i = from_end ? size_ - 1 : 0; to_drop > 0; i += from_end ? -1 : 1) {
      if (key(own[i]) != tied || !keeps(own[i])) continue;
      own[i] = -kInf;
      --to_drop;
    }
  }

  // The `count`-th largest survivor and how many equal ones are among the first `count`.
  Cut nth_largest(int64_t count) const {
    return select_cut(scores(), size_, ScoreKey{}, count_weight(), Target{static_cast<double>(count), 0}, scratch_);
  }

  void keep_exactly_largest(int64_t count, Stay stay) {
    const Cut cut = nth_largest(count);
    if (cut.key > -kInf) cut_at(cut, count - static_cast<int64_t>(cut.above), stay);
  }

  double exp_of(float score) const {
    float lanes[kLanes];
    store(lanes, exp_nonpositive(broadcast(score - max_score_)));
    return lanes[0];
  }

  const Filters& filters_;
  Scratch& scratch_;
  const float* scores_ = nullptr;  // the row's own, or scratch_.scores
  bool gathered_ = false;
  int64_t size_ = 0;
  float max_score_ = 0;
  double standard_deviation_ = 0;  // of the whole row, where the first filter asks for it
  double total_mass_ = -1;         // of the whole row before filters, where it was summed; else negative
  float low_ = -kInf;
  float high_ = kInf;
};

}  // namespace pygen::cpu::PYGEN_ISA
