// Weighted selection without sorting: the score at which the weight of everything above it reaches a target.
//
// A few hundred sampled keys bracket the answer. One vectorised pass adds up the weight above the bracket and keeps the
// scores inside; it is repeated on those until few are left to sort. The sample only chooses where to cut: all
// decisions rest on exact counts or sums over all candidates, so the result does not depend on it.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/row_scores.h"
#include "cpu/scratch.h"
#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

// Keys by which candidates are ordered, largest first.
struct ScoreKey {
  PYGEN_INLINE F32 operator()(const F32& score) const { return score; }
  PYGEN_INLINE float operator()(float score) const { return score; }
};

// Locally typical sampling: minus the distance to `center`, computed with one subtraction so that it is monotone.
struct TypicalKey {
  float center;
  PYGEN_INLINE F32 operator()(const F32& score) const {
    const F32 d = score - broadcast(center);
    return bit_cast<float>(bit_cast<uint32_t>(d) | broadcast(0x80000000u));
  }
  PYGEN_INLINE float operator()(float score) const { return -std::fabs(score - center); }
};

// Weights; zero outside [low, high] and at -inf, which also is what vectors are padded with.
struct CountWeight {
  float low, high;
  PYGEN_INLINE F32 operator()(const F32& score) const {
    const float finite_low = low > -std::numeric_limits<float>::max() ? low : -std::numeric_limits<float>::max();
    return where_ge(score, broadcast(finite_low), where_ge(broadcast(high), score, broadcast(1.0f)));
  }
};

// e^(score - max_score), in [0, 1].
struct UnboundedMassWeight {
  float max_score;
  PYGEN_INLINE F32 operator()(const F32& score) const { return exp_nonpositive(score - broadcast(max_score)); }
};

struct MassWeight {
  float max_score, low, high;
  PYGEN_INLINE F32 operator()(const F32& score) const {
    const F32 mass = exp_nonpositive(score - broadcast(max_score));
    return where_ge(score, broadcast(low), where_ge(broadcast(high), score, mass));
  }
};

// What `compress_store` may write past the end of an array.
constexpr int64_t kSlack = kLanes;

// Runs body(v) over an array in blocks of four vectors; the last block is filled up with -inf.
template <typename Body>
PYGEN_INLINE void for_each_block(const float* scores, int64_t count, const Body& body) {
  float tail[kBlock];
  for (int64_t i = 0; i < count; i += kBlock) {
    const float* at = scores + i;
    if (count - i < kBlock) {
      for (int64_t j = 0; j < kBlock; ++j) tail[j] = i + j < count ? scores[i + j] : -kInf;
      at = tail;
    }
    F32 v[4];
    for (int j = 0; j < 4; ++j) v[j] = load(at + j * kLanes);
    body(v);
  }
}

template <typename Weight>
double sum_weights(const float* scores, int64_t count, const Weight& weight) {
  Sum sum;
  for_each_block(scores, count,
                 [&](const F32 v[4]) { sum.add((weight(v[0]) + weight(v[1])) + (weight(v[2]) + weight(v[3]))); });
  return sum.total();
}

// How many scores have a positive weight.
template <typename Weight>
int64_t count_weighing(const float* scores, int64_t count, const Weight& weight) {
  int64_t found = 0;
  const F32 zero = broadcast(0.0f);
  for_each_block(scores, count, [&](const F32 v[4]) {
    for (int j = 0; j < 4; ++j) found += __builtin_popcount(gt(weight(v[j]), zero));
  });
  return found;
}

struct Cut {
  float key;          // the largest key at which the weight of all keys >= it reaches the target
  double above;       // weight of the keys > key
  int64_t num_equal;  // candidates of positive weight at it
};

// A sample of n keys brackets a fraction f within 3 sqrt(f (1 - f) / n): 256 keys leave a fifth of the candidates.
constexpr int64_t kSample = 256;
// A pass leaves a fifth and two sorted samples; fewer candidates than eight samples are sorted themselves.
constexpr int64_t kSamplesPerPass = 8;
// Half of a sample: sorting it costs less than choosing the next bracket.
constexpr int64_t kSortDirectly = 128;
// Interpolation brackets the answer in a tenth of the interval of keys.
constexpr double kInterpolationMargin = 0.05;
// Interpolation goes on while a pass drops at least a quarter of the candidates.
constexpr int64_t kLeastDropped = 4;

// What the weight at and above the cut shall reach: a number, or a fraction of the weight of all.
struct Target {
  double weight;  // negative: use `fraction`
  double fraction;
};

struct DescendingKey {
  bool operator()(const KeyedWeight& a, const KeyedWeight& b) const { return a.key > b.key; }
};

// Candidates of positive weight, largest key first.
template <typename Key, typename Weight>
void sort_candidates(const float* scores, int64_t count, const Key& key, const Weight& weight,
                     Buffer<KeyedWeight>& sorted) {
  sorted.reserve(count);
  sorted.clear();
  for_each_block(scores, count, [&](const F32 v[4]) {
    float keys[kBlock], weights[kBlock];
    for (int j = 0; j < 4; ++j) {
      store(keys + j * kLanes, key(v[j]));
      store(weights + j * kLanes, weight(v[j]));
    }
    for (int64_t i = 0; i < kBlock; ++i)
      if (weights[i] > 0) sorted.push({keys[i], weights[i]});
  });
  std::sort(sorted.data(), sorted.data() + sorted.size(), DescendingKey{});
}

template <typename Key, typename Weight>
Cut cut_of_sorted(const float* scores, int64_t count, const Key& key, const Weight& weight, double above, double target,
                  Buffer<KeyedWeight>& sorted) {
  sort_candidates(scores, count, key, weight, sorted);
  Cut cut{-kInf, above, 0};
  double reached = above;
  for (int64_t i = 0; i < sorted.size() && reached < target; i += cut.num_equal) {
    cut = {sorted[i].key, reached, 0};
    for (int64_t j = i; j < sorted.size() && sorted[j].key == cut.key; ++j, ++cut.num_equal)
      reached += sorted[j].weight;
  }
  return cut;
}

// Keys between which the answer is expected. They only decide where to cut.
struct Bracket {
  float upper, lower;
};

// From a sample of many candidates: the keys around `fraction` of the weight. `weight_left` is the absolute form, else
// negative.
template <typename Key, typename Weight>
Bracket bracket_from_sample(const float* scores, int64_t count, const Key& key, const Weight& weight,
                            double weight_left, double fraction, Buffer<KeyedWeight>& sorted) {
  const int64_t stride = count / kSample;
  float sample[kSample];
  for (int64_t i = 0; i < kSample; ++i) sample[i] = scores[i * stride + stride / 2];
  sort_candidates(sample, kSample, key, weight, sorted);
  if (sorted.size() == 0) return {-kInf, -kInf};
  double sampled = 0;
  for (int64_t i = 0; i < sorted.size(); ++i) sampled += sorted[i].weight;
  if (weight_left >= 0) fraction = std::min(1.0, weight_left * kSample / (sampled * static_cast<double>(count)));
  // Three standard deviations of a sampled fraction, and two places for its granularity; a miss costs one more pass.
  const double margin = 3 * std::sqrt(fraction * (1 - fraction) / kSample) + 2.0 / kSample;
  Bracket bracket{kInf, sorted[sorted.size() - 1].key};
  double walked = 0;
  for (int64_t i = 0; i < sorted.size(); ++i) {
    walked += sorted[i].weight;
    if (bracket.upper == kInf && walked >= (fraction - margin) * sampled) bracket.upper = sorted[i].key;
    if (walked >= (fraction + margin) * sampled) {
      bracket.lower = sorted[i].key;
      break;
    }
  }
  return bracket;
}

// The part of [smallest, largest] around the place of the answer if the weight were spread evenly.
inline Bracket bracket_by_interpolation(float largest, float smallest, double fraction) {
  const double span = static_cast<double>(largest) - smallest;
  return {static_cast<float>(largest - span * (fraction - kInterpolationMargin)),
          static_cast<float>(largest - span * (fraction + kInterpolationMargin))};
}

// Scores whose weight is zero are never the answer, unless the target is out of reach: then the cut is -inf, and all
// pass.
template <typename Key, typename Weight>
Cut select_cut(const float* scores, int64_t count, const Key& key, const Weight& weight, const Target& wanted,
               Scratch& scratch) {
  double above = 0;  // weight of the keys above all candidates
  double total = 0;  // of the candidates; known after the first pass, like their extreme keys
  double target = wanted.weight;
  float largest = kInf, smallest = -kInf;
  bool interpolate = false;
  for (int side = 0; count > kSortDirectly; side ^= 1) {
    if (!interpolate && count <= kSamplesPerPass * kSample) break;
    const Bracket bracket = interpolate
                                ? bracket_by_interpolation(largest, smallest, (target - above) / total)
                                : bracket_from_sample(scores, count, key, weight, target < 0 ? -1.0 : target - above,
                                                      wanted.fraction, scratch.sorted);

    float* inside = scratch.bracket[side].reserve(count + kSlack);
    int64_t num_inside = 0;
    Sum sum_above, sum_all;
    const F32 upper = broadcast(bracket.upper);
    // Never -inf: masked scores and the padding of the last block must not become candidates.
    const F32 lower = broadcast(std::max(bracket.lower, -std::numeric_limits<float>::max()));
    for_each_block(scores, count, [&](const F32 v[4]) {
      F32 all[4], above_upper[4];
      for (int j = 0; j < 4; ++j) {
        const F32 k = key(v[j]);
        all[j] = weight(v[j]);
        above_upper[j] = where_gt(k, upper, all[j]);
        num_inside += compress_store(inside + num_inside, v[j], ge(k, lower) & ge(upper, k));
      }
      sum_all.add((all[0] + all[1]) + (all[2] + all[3]));
      sum_above.add((above_upper[0] + above_upper[1]) + (above_upper[2] + above_upper[3]));
    });
    const double weight_above = sum_above.total(), weight_all = sum_all.total();
    const double weight_inside = sum_weights(inside, num_inside, weight);
    if (target < 0) target = wanted.fraction * weight_all;

    total = weight_inside;
    const bool answer_above = above + weight_above >= target;
    if (answer_above || above + weight_above + weight_inside < target) {
      num_inside = 0;
      total = answer_above ? weight_above : std::max(0.0, weight_all - weight_above - weight_inside);
      if (!answer_above) above += weight_inside;
      // The filling of the last block has no weight and is left out with everything else at -inf.
      for_each_block(scores, count, [&](const F32 v[4]) {
        for (int j = 0; j < 4; ++j) {
          const F32 k = key(v[j]);
          const Bits chosen = (answer_above ? gt(k, upper) : gt(lower, k)) & gt(v[j], broadcast(-kInf));
          num_inside += compress_store(inside + num_inside, v[j], chosen);
        }
      });
    }
    if (!answer_above) above += weight_above;

    F32 key_max = broadcast(-kInf), negated_max = broadcast(-kInf);
    for (int64_t i = 0; i + kLanes <= num_inside; i += kLanes) {
      const F32 k = key(load(inside + i));
      key_max = max(key_max, k);
      negated_max = max(negated_max, broadcast(-0.0f) - k);
    }
    largest = reduce_max(key_max);
    smallest = -reduce_max(negated_max);
    for (int64_t i = num_inside / kLanes * kLanes; i < num_inside; ++i) {
      largest = std::max(largest, key(inside[i]));
      smallest = std::min(smallest, key(inside[i]));
    }
    if (num_inside > 0 && largest == smallest && smallest > -kInf) {
      const int64_t num_equal = count_weighing(inside, num_inside, weight);
      return {num_equal > 0 ? largest : -kInf, above, num_equal};
    }
    // A sample in which nothing has weight brackets nothing; few have, so sorting those is cheap.
    const bool stuck = num_inside == count && !interpolate;
    // Outliers make the interpolation creep; sampling, or sorting in the end, does not care about them.
    interpolate = smallest > -kInf && total > 0 && num_inside < count - count / kLeastDropped;
    scores = inside;
    count = num_inside;
    if (stuck) break;
  }
  if (target < 0) target = wanted.fraction * sum_weights(scores, count, weight);
  return cut_of_sorted(scores, count, key, weight, above, target, scratch.sorted);
}

}  // namespace pygen::cpu::PYGEN_ISA
