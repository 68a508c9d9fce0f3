// The K best continuations of one beam, sorted, by the blocks of a cluster.
//
// One pass over the raw logits gives the maxima of the tiles and the sums of their e^(x - maximum), so the row's
// log-sum-exp. For the maxima of the processed scores it reads again only tiles with a penalized token, or all where
// bias or token_bitmask touch every token; then only the tiles that reach the K-th largest of those maxima.
#pragma once

#include "cuda/beam_merge.cuh"
#include "cuda/geometry.h"

namespace pygen::cuda {

template <DType kDType, bool kDraws>
class BeamSelection {
 public:
  using Scores = RowScores<kDType>;
  static constexpr int kCount = Scores::kCount;

  // `words`: (rows, vocab_size) of the workspace, where the penalized tokens are there.
  PYGEN_DEVICE BeamSelection(const BeamParams& params, const RowLaunch& plan, int64_t beam, uint32_t* words,
                             SharedMemory& memory)
      : params_(params),
        beam_(beam),
        row_(params.slots[beam]),
        running_(params.running_scores[beam]),
        smem_(memory),
        team_(plan.geometry.cluster, smem_),
        raw_(without_shaping(params.shaping), plan.geometry, row_, 0, nullptr, /*sums=*/true, memory),
        scores_(params.shaping, plan.geometry, row_, plan.table_slots,
                plan.dense ? words + row_ * params.shaping.vocab_size : nullptr, kDraws, memory),
        count_(memory.take<int>(1)),
        best_(memory, static_cast<int>(params.num_candidates)) {}

  static size_t bytes(const BeamParams& params, const RowLaunch& plan) {
    const Geometry& geometry = plan.geometry;
    return RowSmem::kBytes + Scores::shared_bytes(geometry, 0, false, true) +
           Scores::shared_bytes(geometry, plan.table_slots, plan.dense, kDraws) + 16 +
           BestOf<kDraws>::bytes(params.num_candidates);
  }

  PYGEN_DEVICE void run() {
    Filters filters = kDraws ? filters_of(params_.shaping, row_) : Filters();
    team_.sync();
    const RowFacts facts = scan(filters);
    if (facts.status == kOk && running_ != -kInfinity) {
      if constexpr (kDraws) {
        filters.temperature = fitting_temperature(filters.temperature, facts.max_score);
        origin_ = facts.max_score / filters.temperature + running_;
        draw(filters, facts.max_score / filters.temperature);
      } else {
        take_largest();
      }
    }
    trigger_next_kernel();
    bring_together();
    team_.sync();  // other blocks may still read this block's shared memory
    scores_.penalized().release(params_.shaping, row_, scores_.layout());
    if (team_.leads()) write(facts.status);
  }

 private:
  PYGEN_DEVICE static ShapingParams without_shaping(const ShapingParams& params) {
    ShapingParams raw;
    raw.vocab_size = params.vocab_size;
    raw.logits = params.logits;
    raw.logits_stride = params.logits_stride;
    return raw;
  }

  // Makes the maxima of the processed scores.
  PYGEN_DEVICE RowFacts scan(const Filters& filters) {
    const auto nothing = [](const float (&)[kCount], int, float) {};
    // A nucleus needs the sums of the processed scores.
    bool whole = kDraws && first_filter(filters) == FirstFilter::kNucleus;
    float max_logit = 0.0f, log_sum = 0.0f;
    if (params_.normalized) {
      whole = true;
    } else {
      const RowFacts facts = facts_of_scan(raw_, team_, raw_.scan(1.0f, nothing));
      if (facts.status != kOk) return facts;
      max_logit = facts.max_score;
      log_sum = log_sum_of_tiles(max_logit);
      scores_.normalize(max_logit, log_sum);
    }
    const bool nan = whole ? scores_.scan(filters.temperature, nothing) : make_maxima(max_logit, log_sum);
    return facts_of_scan(scores_, team_, nan);
  }

  // ln of the sum of e^(logit - max_score). Integers, so that it does not depend on how the row was split.
  PYGEN_DEVICE float log_sum_of_tiles(float max_score) {
    uint64_t sum = 0;
    for (int tile = raw_.layout().first_tile() + thread_index(); tile < raw_.layout().last_tile(); tile += kThreads) {
      const float largest = raw_.maxima().get(tile);
      if (largest == -kInfinity) continue;
      const double mass = static_cast<double>(raw_.sums().get(tile)) * exp_nonpositive(largest - max_score);
      sum += static_cast<uint64_t>(mass * kMassUnits);
    }
    sum = team_.reduce(sum, Add{});
    return static_cast<float>(log(static_cast<double>(sum) / kMassUnits));
  }

  // The maxima of the scores from those of the logits; whether the thread saw a NaN.
  PYGEN_DEVICE bool make_maxima(float max_logit, float log_sum) {
    const RowLayout<kDType>& layout = scores_.layout();
    const bool everywhere = params_.shaping.bias != nullptr || params_.shaping.token_bitmask != nullptr;
    const int lanes = 1 << layout.log2_lanes();
    bool nan = false;
    for (int vector = layout.first_vector() + thread_index(); vector < layout.last_vector(); vector += kThreads) {
      const int tile = layout.tile_of(vector);
      float max_score = (raw_.maxima().get(tile) - max_logit) - log_sum;
      const bool look = everywhere || (scores_.penalized().any() && scores_.penalized().near(layout.token_of(vector)));
      if (__ballot_sync(kAllLanes, look) != 0) {
        float x[kCount];
        scores_.look_again(vector, x);
        max_score = -kInfinity;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          nan |= x[i] != x[i];
          max_score = fmaxf(max_score, x[i]);
        }
        max_score = warp_reduce(max_score, Larger{}, lanes);
      }
      if (lane_index() % lanes != 0) continue;
      scores_.maxima().set(tile, max_score);
      if (!team_.leads()) scores_.maxima().of_block(0).set(tile, max_score);
    }
    return nan && everywhere;
  }

  PYGEN_DEVICE float bound_of_best(Shared<float> maxima) {
    float bound = 0.0f;
    if (team_.leads())
      bound =
          bound_of_largest(maxima, scores_.layout().tiles(), static_cast<int>(params_.num_candidates), smem_.reduce);
    return float_of(static_cast<uint32_t>(team_.from_leader(bits_of(bound))));
  }

  PYGEN_DEVICE void take_largest() {
    const float bound = bound_of_best(scores_.maxima()) + running_;
    const float running = running_;
    if (bound > -kInfinity) best_.raise_bar(ordered_key(static_cast<double>(bound)));
    const int vectors = list_tiles(scores_.maxima(), [=](float max_score) { return max_score + running >= bound; });
    for (int first = 0; first < vectors; first += kThreads) {
      uint64_t keys[kCount] = {};
      float sums[kCount] = {};
      int token = 0;
      if (const int i = first + thread_index(); i < vectors) {
        token = look_again(i, sums);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          sums[j] = sums[j] + running;
          keys[j] = sums[j] > -kInfinity ? ordered_key(static_cast<double>(sums[j])) : 0;
        }
      }
      best_.offer(keys, token, sums);
    }
  }

  PYGEN_DEVICE void draw(const Filters& filters, float largest) {
    const bool listed = filter_list(scores_, team_, filters, largest, 0,
                                    [&](const SortedList& list, double) { offer_draws(list.begin(), list.end()); });
    if (listed) return;
    best_ = draw_from_row(*this, filters, largest);
    team_.sync();
  }

  // Where no list is enough. Takes `self` by value, so that only the copy leaves the registers, and returns the best.
  PYGEN_COLD static BestOf<kDraws> draw_from_row(BeamSelection self, Filters filters, float largest) {
    const RowNoise noise(self.params_, self.beam_, step_of(self.params_));
    RowView<kDType> view(self.scores_, self.team_, filters.temperature, largest);
    if (has_filters(filters)) apply_filters(view, filters, largest);
    self.team_.sync();
    self.find_races(view.interval(), filters.temperature, noise);
    self.team_.sync();
    const float bound = self.bound_of_best(self.raw_.maxima());
    self.offer_races(view.interval(), filters.temperature, noise, bound > -kInfinity ? bar_below(bound) : bound);
    return self.best_;
  }

  // Entries [begin, end) of the block's list.
  PYGEN_DEVICE void offer_draws(int begin, int end) {
    const RowNoise noise(params_, beam_, step_of(params_));
    for (int first = begin; first < end; first += kThreads) {
      const int i = first + thread_index();
      uint64_t key[] = {0};
      float sum[] = {0.0f};
      int token = 0;
      if (i < end) {
        const uint64_t entry = smem_.list.get(i);
        token = token_of_entry(entry);
        sum[0] = score_of_entry(entry) + running_;
        key[0] = ordered_key(exact_value(sum[0], origin_, noise.exponential(token)));
      }
      best_.offer(key, token, sum);
    }
  }

  // Without the running score, which may be so large that float32 loses the noise.
  PYGEN_DEVICE float value_in_race(float score, int token, const RowNoise& noise) const {
    return value_about((score + running_) - running_, noise.about(token));
  }

  // Where the survivors are too many for a list: replaces the maxima of tiles in `raw_` by the best values in them.
  PYGEN_DEVICE void find_races(const Interval& survivors, float temperature, const RowNoise& noise) {
    const RowLayout<kDType>& layout = scores_.layout();
    const Shared<float> races = raw_.maxima();
    const int lanes = 1 << layout.log2_lanes();
    for (int vector = layout.first_vector() + thread_index(); vector < layout.last_vector(); vector += kThreads) {
      const int tile = layout.tile_of(vector);
      const float largest = scores_.maxima().get(tile);
      float max_score = -kInfinity;
      if (largest > -kInfinity && largest / temperature >= survivors.low) {
        float x[kCount];
        scores_.look_again(vector, x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int token = layout.token_of(vector) + i;
          const float score = x[i] / temperature;
          if (survivors.keeps(score, token)) max_score = fmaxf(max_score, value_in_race(score, token, noise));
        }
      }
      max_score = warp_reduce(max_score, Larger{}, lanes);
      if (lane_index() % lanes != 0) continue;
      races.set(tile, max_score);
      if (!team_.leads()) races.of_block(0).set(tile, max_score);
    }
  }

  // Offers the survivors whose value reaches the bar, a list at a time.
  PYGEN_DEVICE void offer_races(const Interval& survivors, float temperature, const RowNoise& noise, float bar) {
    constexpr int kAtOnce = kListCapacity / kCount < kThreads ? kListCapacity / kCount : kThreads;
    const int vectors = list_tiles(raw_.maxima(), [=](float max_score) { return max_score >= bar; });
    for (int first = 0; first < vectors; first += kAtOnce) {
      if (thread_index() == 0) count_.set(0, 0);
      __syncthreads();
      if (const int i = first + thread_index(); thread_index() < kAtOnce && i < vectors) {
        float x[kCount];
        const int token = look_again(i, x);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const float score = x[j] / temperature;
          if (survivors.keeps(score, token + j) && value_in_race(score, token + j, noise) >= bar)
            smem_.list.set(count_.add(0, 1), list_entry(score, token + j));
        }
      }
      __syncthreads();
      offer_draws(0, count_.get(0));
      __syncthreads();
    }
  }

  // Overwrites the sums with a list of the slice's tiles whose maximum is `wanted`; returns the number of their
  // vectors.
  template <typename Wanted>
  PYGEN_DEVICE int list_tiles(Shared<float> maxima, const Wanted& wanted) {
    const RowLayout<kDType>& layout = scores_.layout();
    if (thread_index() == 0) count_.set(0, 0);
    __syncthreads();
    for (int tile = layout.first_tile() + thread_index(); tile < layout.last_tile(); tile += kThreads) {
      const float max_score = maxima.get(tile);
      if (max_score > -kInfinity && wanted(max_score))
        raw_.sums().set(count_.add(0, 1), float_of(static_cast<uint32_t>(tile)));
    }
    __syncthreads();
    const int vectors = count_.get(0) << layout.log2_lanes();
    __syncthreads();
    return vectors;
  }

  // The scores of vector i of the listed tiles; returns its first token.
  PYGEN_DEVICE int look_again(int i, float (&x)[kCount]) const {
    const int log2_lanes = scores_.layout().log2_lanes();
    const int tile = static_cast<int>(bits_of(raw_.sums().get(i >> log2_lanes)));
    const int vector = (tile << log2_lanes) + (i & ((1 << log2_lanes) - 1));
    scores_.look_again(vector, x);
    return scores_.layout().token_of(vector);
  }

  // The leader takes over what the other blocks have found.
  PYGEN_DEVICE void bring_together() {
    if (team_.cluster() == 1) return;
    team_.sync();
    if (!team_.leads()) return;
    for (int rank = 1; rank < team_.cluster(); ++rank) {
      const Ranking<kDraws> theirs = best_.ranking().of_block(rank);
      const int count = best_.size().of_block(rank).get(0);
      for (int first = 0; first < count; first += kThreads) {
        const int i = first + thread_index();
        const uint64_t key[] = {i < count ? theirs.key(i) : 0};
        const float sum[] = {i < count ? theirs.score(i) : 0.0f};
        best_.offer(key, i < count ? theirs.index(i) : 0, sum);
      }
    }
  }

  PYGEN_DEVICE void write(RowStatus status) {
    const int count = best_.keep_best();
    auto* const out = static_cast<Candidate*>(params_.best_of_row) + beam_ * params_.num_candidates;
    const int32_t parent = static_cast<int32_t>(beam_ % params_.num_beams);
    const Ranking<kDraws>& ranking = best_.ranking();
    uint32_t highest = 0;
    for (int i = thread_index(); i < count; i += kThreads) {
      // The origin differs between beams: only score and noise can be compared.
      const double above = kDraws ? static_cast<double>(ranking.score(i)) - origin_ : 0.0;
      out[i] = {value_of_key(ranking.key(i)) - above, ranking.score(i), parent, ranking.index(i)};
      if (kDraws) highest = Larger{}(highest, ordered_key(ranking.score(i)));
    }
    if (kDraws) highest = static_cast<uint32_t>(block_reduce(uint64_t{highest}, Larger{}, smem_.reduce));
    if (thread_index() != 0) return;
    params_.status[row_] = status;
    params_.count_of_row[beam_] = list_facts(count, highest);
  }

  const BeamParams& params_;
  const int64_t beam_, row_;
  const float running_;
  float origin_ = 0.0f;  // about the largest sum; see exact_value
  RowSmem smem_;
  RowTeam team_;
  Scores raw_, scores_;
  Shared<int> count_;
  BestOf<kDraws> best_;
};

}  // namespace pygen::cuda
