// One row of `sample`, by the blocks of a cluster or by one: the scan, then the block that leads draws. Exact: no
// threshold is sampled. Bytes per row: one read of the logits. Where the survivors are too many for a list, the row is
// read again: from shared memory where a cluster holds it, else through the cache.
#pragma once

#include "cuda/bookkeeping.cuh"
#include "cuda/geometry.h"
#include "cuda/top_logprobs.cuh"

namespace pygen::cuda {

// What the rows of a launch ask for. A kernel that does less is smaller, and reads faster from a cold cache.
enum class Rows {
  kListed,  // greedy ones, and those whose filters are top_k, top_p and min_p: rarely more survivors than a list holds
  kPlain,   // temperature alone: the race takes part in the scan
  kAny,
};

// What is left to do where no list is enough.
enum class Draw : uint32_t { kNothing, kFilter, kFinishRace, kKnown };

// What the block that leads tells the others. `racer`: the winner as far as known.
struct Decision {
  Draw draw = Draw::kNothing;
  float max_score = 0.0f;  // of the row, before temperature
  Racer racer;

  static constexpr int kWords = 3;
  PYGEN_DEVICE void write(uint64_t (&words)[kWords]) const {
    const auto both = [](uint32_t high, uint32_t low) { return static_cast<uint64_t>(high) << 32 | low; };
    words[0] = both(static_cast<uint32_t>(draw), static_cast<uint32_t>(racer.token));
    words[1] = both(bits_of(max_score), bits_of(racer.best));
    words[2] = both(bits_of(racer.second), bits_of(racer.score));
  }
  PYGEN_DEVICE static Decision read(const uint64_t (&words)[kWords]) {
    const auto high = [&](int i) { return static_cast<uint32_t>(words[i] >> 32); };
    const auto low = [&](int i) { return static_cast<uint32_t>(words[i]); };
    return {static_cast<Draw>(high(0)), float_of(high(1)),
            Racer{float_of(low(1)), float_of(high(2)), static_cast<int>(low(0)), float_of(low(2))}};
  }
};

// Writes one row's results. The leader's threads call.
class Results {
 public:
  PYGEN_DEVICE Results(const SampleParams& params, int64_t row) : params_(params), row_(row) {}

  PYGEN_DEVICE bool wants_logprobs() const { return params_.logprobs != nullptr; }
  PYGEN_DEVICE int wanted_tops() const {
    const int64_t vocab_size = params_.shaping.vocab_size;
    return params_.top_ids == nullptr
               ? 1
               : static_cast<int>(params_.num_logprobs < vocab_size ? params_.num_logprobs : vocab_size);
  }

  PYGEN_DEVICE void write_logprob(float score, const LogSum& log_sum) const {
    if (thread_index() == 0) params_.logprobs[row_] = log_probability(score, log_sum);
  }
  // Empty if the top log-probabilities were not requested.
  PYGEN_DEVICE TopLogprobs tops() const {
    if (params_.top_ids == nullptr) return {nullptr, nullptr, 0};
    const int64_t first = row_ * params_.num_logprobs;
    return {params_.top_ids + first, params_.top_logprobs + first, params_.num_logprobs};
  }
  PYGEN_DEVICE void write_no_logprobs() const {
    if (thread_index() == 0) params_.logprobs[row_] = __builtin_nanf("");
    tops().write_none();
  }

 private:
  const SampleParams& params_;
  int64_t row_;
};

// The shared memory and the scores of a row. Built from the kernel's parameters alone, so that a function that is not
// inlined builds it again instead of getting it through local memory.
template <DType kType, Rows kRows>
struct SampleRow {
  using Scores = RowScores<kType, kRows == Rows::kAny>;
  static constexpr bool kRaces = kRows != Rows::kListed;

  const SampleParams& params;
  int64_t row;
  SharedMemory shared;
  RowSmem smem;
  RaceSmem race;
  RowTeam team;
  ViewSmem<Scores> view;
  Scores scores;

  PYGEN_DEVICE SampleRow(const SampleParams& all, const RowLaunch& launch, void* workspace, int turn = 0)
      : params(all),
        row(blockIdx.x / launch.geometry.cluster),
        smem(launch.geometry, shared),
        race(shared),
        team(launch.geometry.cluster, smem, turn),
        view(shared),
        scores(all.shaping, launch, row, rank_in_row(launch.geometry),
               static_cast<uint32_t*>(workspace) + kCounterBytes / 4 + row * launch.extra.far_words, smem.slots,
               shared) {}

  PYGEN_DEVICE Filters filters() const {
    const Filters all = filters_of(params.shaping, row);
    if constexpr (kRows == Rows::kAny) return all;
    Filters own;
    own.temperature = all.temperature;
    if constexpr (kRows == Rows::kListed) {
      own.min_tokens_to_keep = all.min_tokens_to_keep;
      own.top_k = all.top_k;
      own.top_p = all.top_p;
      own.min_p = all.min_p;
    }
    return own;
  }
  PYGEN_DEVICE RowNoise noise() const { return RowNoise(params, row, knob_at(params.step, row)); }

  // The pass over the logits. Where the row races as it is scanned, its best token so far is that of the thread.
  PYGEN_DEVICE Racer scan() {
    Racer racer;
    const Filters own = filters();
    const bool greedy = is_greedy(own);
    const float temperature = greedy ? 1.0f : own.temperature;
    if constexpr (kRaces) {
      const bool races = !greedy && !has_filters(own);
      const RowNoise of_row = noise();
      float bar = -kInfinity;
      const auto visit = [&](const float (&x)[Scores::kCount], int token, float max_score) {
        if (races) race_vector(x, token, max_score, temperature, of_row, racer, bar);
      };
      if (scores.has_sums()) {
        scores.template scan<Keep::kSums>(temperature, visit);
      } else {
        scores.template scan<Keep::kMaxima>(temperature, visit);
      }
      if (races && team.leads()) race_extra(scores.extra(), temperature, of_row, racer);
      racer = block_reduce(racer, FasterRacer{}, race.racers);
      if (thread_index() == 0) race.racers.set(kWarps, racer);
    } else if (scores.has_sums()) {
      scores.template scan<Keep::kSums>(temperature, NoVisit{});
    } else {
      scores.template scan<Keep::kMaxima>(temperature, NoVisit{});
    }
    return racer;
  }

  // What the row's scan tells of the race. All threads of the block that leads, behind a barrier of the row.
  PYGEN_DEVICE Racer best_of_scan() const {
    Racer best = race.racers.get(kWarps);
    for (int rank = 1; rank < team.cluster(); ++rank)
      best = FasterRacer{}(best, race.racers.of_block(static_cast<unsigned>(rank)).get(kWarps));
    return best;
  }

  // Draws if a list is enough, and writes status and log-probabilities. All threads of the block that leads.
  PYGEN_DEVICE Decision decide() {
    const Results results(params, row);
    const RowFacts facts = facts_of_row(scores, smem);
    if (thread_index() == 0) params.status[row] = facts.status;
    Filters own = filters();
    Decision decision;
    decision.max_score = facts.max_score;
    Racer& racer = decision.racer;
    bool known = false;
    if (facts.status != kOk || is_greedy(own)) {
      racer.token = lowest_token_of(scores, smem, facts.max_score);
      racer.score = facts.max_score;
      if (facts.status != kOk && results.wants_logprobs()) results.write_no_logprobs();
      if (facts.status != kOk || !results.wants_logprobs()) return decision;
      own = Filters();
      known = true;
    }
    const float asked = own.temperature;
    own.temperature = fitting_temperature(asked, facts.max_score);
    if constexpr (kRaces) {
      // With a temperature that does not fit, the scan raced infinities.
      if (!known && !has_filters(own) && own.temperature == asked) {
        racer = best_of_scan();
        known = racer.clear();
        if (!known) {
          decision.draw = Draw::kFinishRace;
          return decision;
        }
        if (!results.wants_logprobs()) return decision;
      }
    }
    const float largest = facts.max_score / own.temperature;
    const bool listed =
        filter_list(scores, smem, own, largest, results.wanted_tops(), [&](const SortedList& list, double mass) {
          if (!known) racer = race_list(list, params, row, race);
          if (!results.wants_logprobs()) return;
          const LogSum log_sum = log_sum_exp(largest, mass);
          results.write_logprob(racer.score, log_sum);
          results.tops().write(list, 0, true, log_sum);
        });
    if (!listed) decision.draw = known ? Draw::kKnown : Draw::kFilter;
    return decision;
  }
};

// A row's bookkeeping. All threads of the block that leads.
PYGEN_COLD void finish_row(const SampleParams& params, int64_t row, int token, LaunchCounters* counters) {
  if (thread_index() >= kWarp) return;
  int64_t taken = token;
  bool still_open = false;
  if (params.state.token_ids != nullptr)
    taken = extend_sequence(params.state, row, knob_at(params.step, row), token, still_open);
  if (thread_index() != 0) return;
  params.token_ids[row] = taken;
  leave(params, counters, still_open);
}

// Filters, race and log-probabilities of the whole row, where no list is enough. All threads of the row. Returns the
// token.
template <DType kType, Rows kRows>
PYGEN_COLD int draw_from_row(const SampleParams& params, const RowLaunch& launch, void* workspace, uint64_t word0,
                             uint64_t word1, uint64_t word2, int extra_count, int turn) {
  const uint64_t words[Decision::kWords] = {word0, word1, word2};
  const Decision decision = Decision::read(words);
  SampleRow<kType, kRows> self(params, launch, workspace, turn);
  self.scores.resume(extra_count);
  const Results results(params, self.row);
  const Filters asked = self.filters();
  Filters filters = is_greedy(asked) ? Filters() : asked;
  filters.temperature = fitting_temperature(filters.temperature, decision.max_score);
  const float largest = decision.max_score / filters.temperature;
  const RowNoise noise = self.noise();
  Racer racer = decision.racer;
  RowView<typename SampleRow<kType, kRows>::Scores> view(self.view, self.scores, self.team, filters.temperature,
                                                         largest);
  if (decision.draw == Draw::kFilter) {
    apply_filters(view, filters, largest);
    racer = race_about(view, noise, self.team, self.race);
  }
  if (decision.draw != Draw::kKnown && !racer.clear())
    racer = race_exactly(view, largest, noise, racer, self.team, self.race);
  if (results.wants_logprobs()) {
    const LogSum log_sum = log_sum_exp(largest, static_cast<double>(view.mass()));
    if (self.team.leads()) results.write_logprob(racer.score, log_sum);
    write_top_of_view(results.tops(), view, self.team, largest, log_sum);
  }
  self.team.sync();
  return racer.token;
}

// Draws and finishes a row whose candidates the block that leads has. All threads of the row.
template <DType kType, Rows kRows>
PYGEN_DEVICE void draw_row(SampleRow<kType, kRows>& self, const RowLaunch& launch, void* workspace) {
  auto* counters = static_cast<LaunchCounters*>(workspace);
  uint64_t words[Decision::kWords] = {};
  if (self.team.leads()) {
    const Decision decision = self.decide();
    decision.write(words);
    if (decision.draw == Draw::kNothing) finish_row(self.params, self.row, decision.racer.token, counters);
  }
  self.team.take_from_leader(words);
  if (Decision::read(words).draw == Draw::kNothing) return;
  const int token = draw_from_row<kType, kRows>(self.params, launch, workspace, words[0], words[1], words[2],
                                                self.scores.extra().count(), self.team.turn());
  if (self.team.leads()) finish_row(self.params, self.row, token, counters);
}

template <DType kType, Rows kRows>
__global__ void __launch_bounds__(kThreads, 1) sample_rows(const __grid_constant__ SampleParams params,
                                                           const __grid_constant__ RowLaunch launch, void* workspace) {
  SampleRow<kType, kRows> self(params, launch, workspace);
  self.scores.start();
  const bool leads = self.team.leads();
  self.scores.hide_extra(params.shaping, self.row, leads, self.smem.reduce);
  if (leads) self.scores.score_extra();
  self.scan();
  self.scores.bring_together(launch.geometry.cluster);
  draw_row(self, launch, workspace);
}

// The plan of a launch whose rows one kernel scans: whether tiles have sums, and whether the rows are read again.
template <DType kType>
RowLaunch plan_of(const SampleParams& params, const Device& device, Kernel kernel) {
  const ShapingParams& shaping = params.shaping;
  const bool small = first_filter_is_small(shaping);
  const bool sums = params.logprobs != nullptr || (may_differ(shaping.top_p, 1.0f) && !small);
  const bool rereads = may_have_filters(shaping) && !small && shaping.vocab_size > kListCapacity;
  return plan_rows<kType>(shaping, device, kernel, RowNeeds(), sums, rereads);
}

template <DType kType, Rows kRows>
Error launch_rows(const SampleParams& params, const Context& context) {
  const RowLaunch rows = plan_of<kType>(params, context.device, address_of(sample_rows<kType, kRows>));
  const Launch launch =
      launch_of_rows(params.shaping.rows, rows.geometry, shared_of<kType>(rows, params.shaping.vocab_size), context);
  return launch_kernel(sample_rows<kType, kRows>, launch, params, rows, context.workspace);
}

}  // namespace pygen::cuda
