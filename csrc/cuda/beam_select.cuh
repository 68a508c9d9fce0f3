// The K best continuations of one beam, sorted, by the blocks of a cluster.
//
// One pass over the logits gives maxima and sums of the tiles, so the row's log-sum-exp, and the maxima without the extra
// tokens. The row is read again where bias or token_bitmask touch every token, and where a nucleus needs the sums of the
// scores; elsewhere only the tiles that reach the K-th largest of the maxima.
#pragma once

#include "cuda/beam_merge.cuh"
#include "cuda/geometry.h"

namespace pygen {

// As of SampleParams: all beams are at one step.
PYGEN_DEVICE int64_t step_of(const BeamParams& params, int64_t) { return step_of(params); }

namespace cuda {

template <DType kDType, bool kDraws, bool kShaped>
class BeamSelection {
 public:
  using Scores = RowScores<kDType, kShaped>;
  using Noise = CalledNoise<BeamParams>;
  static constexpr int kCount = Scores::kCount;

  // `far`: the workspace for extra tokens. `turn`: of the team of an object that this one goes on for.
  PYGEN_DEVICE BeamSelection(const BeamParams& params, const RowLaunch& plan, int64_t beam, uint32_t* far,
                             SharedMemory& memory, int turn = 0)
      : params_(params),
        plan_(plan),
        far_(far),
        beam_(beam),
        row_(params.slots[beam]),
        running_(params.running_scores[beam]),
        view_(memory),
        words_(memory),
        count_(memory.take<int>(1)),
        smem_(words_, plan.geometry, memory),
        team_(plan.geometry.cluster, smem_, turn),
        scores_(params.shaping, plan, row_, rank_in_row(plan.geometry), far + row_ * plan.extra.far_words, smem_.slots,
                memory),
        of_tiles_(memory.take<float>(tiles_of(plan.geometry))),
        best_(memory, static_cast<int>(params.num_candidates)) {}

  // Of shared memory: the log-sum-exp takes the sums.
  static RowNeeds needs(int64_t num_candidates) {
    RowNeeds needs;
    needs.sums = true;
    needs.more_per_tile = 1;
    needs.bytes = BestOf<kDraws>::bytes(num_candidates);
    return needs;
  }

  PYGEN_DEVICE void run() {
    scores_.start();
    // The blocks write to each other's shared memory, once all have started.
    if (team_.cluster() > 1) cluster_arrive();
    scores_.hide_extra(params_.shaping, row_, team_.leads(), smem_.reduce);
    Filters filters = kDraws ? filters_of(params_.shaping, row_) : Filters();
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
    if (team_.leads()) write(facts.status);
  }

 private:
  // Makes the maxima of the processed scores, and their facts for all threads of the row.
  PYGEN_DEVICE RowFacts scan(const Filters& filters) {
    if (params_.normalized) {
      scores_.template scan<Keep::kSums>(filters.temperature, NoVisit{});
      if (team_.cluster() > 1) cluster_wait();
    } else {
      scores_.template scan<Keep::kRaw>(1.0f, NoVisit{}, of_tiles_);
      if (team_.cluster() > 1) cluster_wait();
      const RowFacts of_logits = facts_of_logits();
      if (of_logits.status != kOk) return of_logits;
      normalize(of_logits.max_score);
      // A nucleus needs the sums of the scores.
      if (kShaped || (kDraws && first_filter(filters) == FirstFilter::kNucleus)) {
        look_again(scores_, filters.temperature);
      } else {
        normalize_maxima();
      }
    }
    if (team_.leads()) scores_.score_extra();
    scores_.bring_together(team_.cluster());
    uint64_t words[2] = {};
    if (team_.leads()) {
      const RowFacts facts = facts_of_row(scores_, smem_);
      words[0] = bits_of(facts.max_score);
      words[1] = static_cast<uint64_t>(facts.status);
    }
    team_.take_from_leader(words);
    return {float_of(static_cast<uint32_t>(words[0])), static_cast<RowStatus>(words[1])};
  }

  // Calls visit(logit) for the row's edges. All threads of the block that leads.
  template <typename Visit>
  PYGEN_DEVICE void for_each_edge(const Visit& visit) const {
    if (!team_.leads()) return;
#pragma unroll 1
    for (int i = thread_index(); i < scores_.layout().edges(); i += kThreads)
      visit(scores_.layout().logit_at(scores_.layout().edge(i)));
  }

  PYGEN_DEVICE RowFacts facts_of_logits() {
    uint32_t max_key = ordered_key(-kInfinity);
    bool nan = false;
    const auto look = [&](float logit) {
      nan |= logit != logit;
      max_key = Larger{}(max_key, ordered_key(logit != logit ? -kInfinity : logit));
    };
    for_each_tile([&](int tile) { look(of_tiles_.get(tile)); });
    for_each_edge(look);
    const uint64_t found =
        team_.reduce(static_cast<uint64_t>(max_key) << 1 | static_cast<uint64_t>(nan), LargerAndFlag{});
    RowFacts facts{value_of_key(static_cast<uint32_t>(found >> 1)), kOk};
    if ((found & 1) != 0) {
      facts.status = kNan;
    } else if (facts.max_score == kInfinity) {
      facts.status = kPosInf;
    } else if (facts.max_score == -kInfinity) {
      facts.status = kAllMasked;
    }
    return facts;
  }

  // The tiles' masses are added as integers, in any order.
  PYGEN_DEVICE void normalize(float max_logit) {
    uint64_t sum = 0;
    const auto add = [&](float largest, float of_largest) {
      if (largest == -kInfinity) return;
      const double mass = static_cast<double>(of_largest) * exp_nonpositive(largest - max_logit);
      sum += static_cast<uint64_t>(mass * kMassUnits);
    };
    for_each_tile([&](int tile) { add(of_tiles_.get(tile), scores_.sums().get(tile)); });
    for_each_edge([&](float logit) { add(logit, 1.0f); });
    sum = team_.reduce(sum, Add{});
    scores_.normalize(max_logit, static_cast<float>(ln(static_cast<double>(sum) / kMassUnits)));
  }

  PYGEN_DEVICE void normalize_maxima() const {
    for_each_tile([&](int tile) { scores_.maxima().set(tile, scores_.normalized(scores_.maxima().get(tile))); });
  }

  // Calls visit(tile) for the thread's tiles of the slice.
  template <typename Visit>
  PYGEN_DEVICE void for_each_tile(const Visit& visit) const {
#pragma unroll 1
    for (int group = scores_.layout().first_group(); group < scores_.layout().last_group(); ++group)
      visit(group * kThreads + thread_index());
  }

  // A bound of the K largest of value(0) to value(count - 1), which the block that leads knows.
  template <typename Value>
  PYGEN_DEVICE float bound_of_best(const Value& value, int count) {
    float bound = 0.0f;
    if (team_.leads()) bound = bound_of_largest(value, count, static_cast<int>(params_.num_candidates), smem_);
    return float_of(static_cast<uint32_t>(team_.from_leader(bits_of(bound))));
  }

  PYGEN_DEVICE void take_largest() {
    const float bound = bound_of_best([&](int i) { return scores_.candidate(i); }, scores_.candidates()) + running_;
    const float running = running_;
    if (bound > -kInfinity) best_.raise_bar(ordered_key(static_cast<double>(bound)));
    const auto key_of = [](float sum) { return sum > -kInfinity ? ordered_key(static_cast<double>(sum)) : 0; };
    const int vectors = list_tiles(scores_.maxima(), [=](float max_score) { return max_score + running >= bound; });
    for (int first = 0; first < vectors; first += kThreads) {
      uint64_t keys[kCount] = {};
      float sums[kCount] = {};
      int token = 0;
      if (const int i = first + thread_index(); i < vectors) {
        token = look_at(i, sums);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          sums[j] = sums[j] + running;
          keys[j] = key_of(sums[j]);
        }
      }
      best_.offer(keys, token, sums);
    }
    if (!team_.leads()) return;
    for (int first = 0; first < scores_.extra().count(); first += kThreads) {
      const int i = first + thread_index();
      const bool some = i < scores_.extra().count();
      const float sum[] = {some ? scores_.extra().score(i) + running : -kInfinity};
      const uint64_t key[] = {key_of(sum[0])};
      best_.offer(key, some ? scores_.extra().token(i) : 0, sum);
    }
  }

  PYGEN_DEVICE void draw(const Filters& filters, float largest) {
    bool listed = false;
    if (team_.leads())
      listed = filter_list(scores_, smem_, filters, largest, 0,
                           [&](const SortedList& list, double) { offer_draws(list.begin(), list.end()); });
    if (team_.from_leader(static_cast<uint64_t>(listed)) != 0) return;
    draw_from_row(params_, plan_, beam_, far_, filters.temperature, largest, scores_.log_softmax(),
                  scores_.extra().count(), team_.turn());
  }

  // Where no list is enough. Builds the selection again, in which nothing was offered so far: as an argument it would be
  // in local memory.
  PYGEN_COLD static void draw_from_row(const BeamParams& params, const RowLaunch& plan, int64_t beam, uint32_t* far,
                                       float temperature, float largest, float2 log_softmax, int extra_count,
                                       int turn) {
    SharedMemory memory;
    BeamSelection self(params, plan, beam, far, memory, turn);
    self.scores_.resume(extra_count);
    if (!params.normalized) self.scores_.normalize(log_softmax.x, log_softmax.y);
    self.origin_ = largest + self.running_;
    Filters filters = filters_of(params.shaping, self.row_);
    filters.temperature = temperature;
    const Noise noise(params, beam);
    RowView<Scores> view(self.view_, self.scores_, self.team_, temperature, largest);
    if (has_filters(filters)) apply_filters(view, filters, largest);
    self.team_.sync();
    self.find_races(view.interval(), temperature, noise);
    self.team_.sync();
    if (self.team_.leads() && self.team_.cluster() > 1) {
      self.scores_.take_tiles(self.of_tiles_, self.team_.cluster());
      __syncthreads();
    }
    const float bound = self.bound_of_best([&](int i) { return self.of_tiles_.get(i); }, self.scores_.layout().tiles());
    self.offer_races(view.interval(), temperature, noise, bound > -kInfinity ? bar_below(bound) : bound);
    self.team_.sync();
  }

  // Entries [begin, end) of the block's list.
  PYGEN_DEVICE void offer_draws(int begin, int end) {
    const Noise noise(params_, beam_);
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
  PYGEN_DEVICE float value_in_race(float score, int token, const Noise& noise) const {
    return noise.value_about((score + running_) - running_, token);
  }

  // Where the survivors are too many for a list: the best values in tiles.
  PYGEN_DEVICE void find_races(const Interval& survivors, float temperature, const Noise& noise) {
    for_each_tile([&](int tile) {
      const float largest = scores_.maxima().get(tile);
      float best = -kInfinity;
      if (largest > -kInfinity && largest / temperature >= survivors.low) {
        for (int sweep = 0; sweep < scores_.layout().tile_sweeps(); ++sweep) {
          const int vector = scores_.layout().vector_of(tile, sweep);
          float x[kCount];
          scores_.look(vector, x);
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            const int token = scores_.layout().token_of(vector) + i;
            const float score = x[i] / temperature;
            if (survivors.keeps(score, token)) best = fmaxf(best, value_in_race(score, token, noise));
          }
        }
      }
      of_tiles_.set(tile, best);
    });
  }

  // Offers the survivors whose value reaches the bar, a list at a time.
  PYGEN_DEVICE void offer_races(const Interval& survivors, float temperature, const Noise& noise, float bar) {
    constexpr int kAtOnce = kListCapacity / kCount < kThreads ? kListCapacity / kCount : kThreads;
    const int vectors = list_tiles(of_tiles_, [=](float best) { return best >= bar; });
    const int extra = team_.leads() ? scores_.extra().count() : 0;
    for (int first = 0; first < vectors + extra; first += kAtOnce) {
      if (thread_index() == 0) count_.set(0, 0);
      __syncthreads();
      const auto offer = [&](float score, int token) {
        score = score / temperature;
        if (survivors.keeps(score, token) && value_in_race(score, token, noise) >= bar)
          smem_.list.set(count_.add(0, 1), list_entry(score, token));
      };
      const int i = first + thread_index();
      if (thread_index() < kAtOnce && i < vectors) {
        float x[kCount];
        const int token = look_at(i, x);
#pragma unroll
        for (int j = 0; j < kCount; ++j) offer(x[j], token + j);
      } else if (thread_index() < kAtOnce && i < vectors + extra) {
        offer(scores_.extra().score(i - vectors), scores_.extra().token(i - vectors));
      }
      __syncthreads();
      offer_draws(0, count_.get(0));
      __syncthreads();
    }
  }

  // Overwrites the sums with a list of the slice's tiles whose number is `wanted`; returns how many vectors they have.
  template <typename Wanted>
  PYGEN_DEVICE int list_tiles(Shared<float> tiles, const Wanted& wanted) {
    __syncthreads();
    if (thread_index() == 0) count_.set(0, 0);
    __syncthreads();
    for_each_tile([&](int tile) {
      const float max_score = tiles.get(tile);
      if (max_score > -kInfinity && wanted(max_score))
        scores_.sums().set(count_.add(0, 1), float_of(static_cast<uint32_t>(tile)));
    });
    __syncthreads();
    const int vectors = count_.get(0) * scores_.layout().tile_sweeps();
    __syncthreads();
    return vectors;
  }

  // The scores of vector i of the listed tiles; returns its first token.
  PYGEN_DEVICE int look_at(int i, float (&x)[kCount]) const {
    const int sweeps = scores_.layout().tile_sweeps(), at = quotient(i, sweeps);
    const int tile = static_cast<int>(bits_of(scores_.sums().get(at)));
    const int vector = scores_.layout().vector_of(tile, i - at * sweeps);
    scores_.look(vector, x);
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
  const RowLaunch& plan_;
  uint32_t* const far_;
  const int64_t beam_, row_;
  const float running_;
  float origin_ = 0.0f;  // about the largest sum; see exact_value
  ViewSmem<Scores> view_;
  RowWords words_;
  Shared<int> count_;
  RowSmem smem_;
  RowTeam team_;
  Scores scores_;
  Shared<float> of_tiles_;  // maxima of the logits; later the best values of a race
  BestOf<kDraws> best_;
};

}  // namespace cuda
}  // namespace pygen
