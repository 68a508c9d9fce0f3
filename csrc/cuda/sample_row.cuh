// One row of `sample`, by the blocks of a cluster or by one: the scan, then the block that leads draws. Exact: no
// threshold is sampled. Bytes per row: one read of the logits. Where the survivors are too many for a list, the row is
// read again: from shared memory where a cluster holds it, else through the cache.
#pragma once

#include "cuda/bookkeeping.cuh"
#include "cuda/geometry.h"
#include "cuda/kept_tokens.cuh"
#include "cuda/scanned_row.cuh"
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
  float temperature = 1.0f, largest = 0.0f;  // the row's largest score over the temperature
  Racer racer;

  static constexpr int kWords = 4;
  PYGEN_DEVICE void write(uint64_t (&words)[kWords]) const {
    const auto both = [](uint32_t high, uint32_t low) { return static_cast<uint64_t>(high) << 32 | low; };
    words[0] = both(static_cast<uint32_t>(draw), static_cast<uint32_t>(racer.token));
    words[1] = both(bits_of(temperature), bits_of(largest));
    words[2] = both(bits_of(racer.best), bits_of(racer.second));
    words[3] = bits_of(racer.score);
  }
  PYGEN_DEVICE static Decision read(const uint64_t (&words)[kWords]) {
    const auto high = [&](int i) { return float_of(static_cast<uint32_t>(words[i] >> 32)); };
    const auto low = [&](int i) { return float_of(static_cast<uint32_t>(words[i])); };
    return {static_cast<Draw>(words[0] >> 32), high(1), low(1),
            Racer{high(2), low(2), static_cast<int>(static_cast<uint32_t>(words[0])), low(3)}};
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

template <DType kType, Rows kRows>
struct SampleRow : ScannedRow<kType, kRows == Rows::kAny, RaceSmem> {
  using Base = ScannedRow<kType, kRows == Rows::kAny, RaceSmem>;
  using Base::row, Base::scores, Base::smem, Base::team;
  using typename Base::Scores;
  static constexpr bool kRaces = kRows != Rows::kListed;

  const SampleParams& params;

  PYGEN_DEVICE SampleRow(const SampleParams& all, const RowLaunch& launch, void* workspace)
      : Base(all.shaping, launch, static_cast<uint32_t*>(workspace) + kCounterBytes / 4, 0), params(all) {}

  PYGEN_DEVICE const RaceSmem& race() const { return this->of_op; }
  // Calls that ask for the kept tokens come to the kernel for rows of any kind. The others do without its code.
  PYGEN_DEVICE static bool wants_kept(const SampleParams& params) {
    return kRows == Rows::kAny && params.kept.counts != nullptr;
  }

  PYGEN_DEVICE Filters filters() const { return filters(params, row); }
  PYGEN_DEVICE static Filters filters(const SampleParams& params, int64_t row) {
    const ShapingParams& asked = params.shaping;
    if constexpr (kRows == Rows::kAny) return filters_of(asked, row);
    Filters own;
    own.temperature = knob_at(asked.temperature, row);
    if constexpr (kRows == Rows::kListed) {
      // The same for all rows, but for min_tokens_to_keep.
      own.min_tokens_to_keep = filter_value(asked.min_tokens_to_keep, row, asked.vocab_size);
      own.top_k = filter_value(Knob<int64_t>{asked.top_k.value}, row, asked.vocab_size);
      own.top_p = asked.top_p.value;
      own.min_p = asked.min_p.value;
      settle_top_k(own, asked.vocab_size);
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
      racer = block_reduce(racer, FasterRacer{}, race().racers);
      if (thread_index() == 0) race().racers.set(kWarps, racer);
    } else if (scores.has_sums()) {
      scores.template scan<Keep::kSums>(temperature, NoVisit{});
    } else {
      scores.template scan<Keep::kMaxima>(temperature, NoVisit{});
    }
    return racer;
  }

  // What the row's scan tells of the race. All threads of the block that leads, behind a barrier of the row.
  PYGEN_DEVICE Racer best_of_scan() const {
    Racer best = race().racers.get(kWarps);
    for (int rank = 1; rank < team.cluster(); ++rank)
      best = FasterRacer{}(best, race().racers.of_block(static_cast<unsigned>(rank)).get(kWarps));
    return best;
  }

  // Draws if a list is enough, and writes status and log-probabilities. All threads of the block that leads.
  PYGEN_DEVICE Decision decide() {
    const Results results(params, row);
    const RowFacts facts = facts_of_row(scores, smem);
    if (thread_index() == 0) params.status[row] = facts.status;
    Filters own = filters();
    Decision decision;
    Racer& racer = decision.racer;
    bool known = false, keeps = wants_kept(params);
    if (facts.status != kOk || is_greedy(own)) {
      racer.token = lowest_token_of(scores, smem, facts.max_score);
      racer.score = facts.max_score;
      if (keeps) write_kept_undrawn(params.kept, row, facts.status == kOk, racer.token, racer.score);
      keeps = false;
      if (facts.status != kOk && results.wants_logprobs()) results.write_no_logprobs();
      if (facts.status != kOk || !results.wants_logprobs()) return decision;
      own = Filters();
      known = true;
    }
    const float asked = own.temperature;
    own.temperature = decision.temperature = fitting_temperature(asked, facts.max_score);
    const float largest = decision.largest = facts.max_score / own.temperature;
    if constexpr (kRaces) {
      // With a temperature that does not fit, the scan raced infinities.
      if (!known && !has_filters(own) && own.temperature == asked) {
        racer = best_of_scan();
        known = racer.clear();
        if (!known) {
          decision.draw = Draw::kFinishRace;
          return decision;
        }
        if (!results.wants_logprobs() && !keeps) return decision;
      }
    }
    // A list of the best tokens does not count the others that no filter removes.
    const bool counts_all = keeps && !has_filters(own) && params.shaping.vocab_size > kListCapacity;
    const bool listed =
        !counts_all &&
        filter_list(scores, smem, own, largest, results.wanted_tops(), [&](const SortedList& list, double mass) {
          if (!known) racer = race_list(list, params, row, race());
          if (!results.wants_logprobs() && !keeps) return;
          const LogSum log_sum = log_sum_exp(largest, mass);
          if (keeps) write_kept_list(params.kept, row, list.entries(), list.begin(), list.end(), log_sum);
          if (!results.wants_logprobs()) return;
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

// Filters, race and log-probabilities of the whole row, where no list is enough: of a RowView that was made. All threads
// of the row. Returns the token.
template <DType kType, Rows kRows>
PYGEN_COLD int draw_from_row(const SampleParams& params, Draw draw, Racer racer, int turn) {
  using View = RowView<typename SampleRow<kType, kRows>::Scores>;
  const int64_t row = cluster_index();
  const typename View::Passes::Memory memory;
  SharedMemory rest = memory.shared;
  const RaceSmem race(rest);
  RowTeam team = View::Passes::team(memory, turn);
  View view(team);
  const float largest = View::Passes::state().largest;
  const Results results(params, row);
  const CalledNoise<SampleParams> noise(params, row);
  if (draw == Draw::kFilter) {
    Filters filters = SampleRow<kType, kRows>::filters(params, row);
    if (is_greedy(filters)) filters = Filters();
    apply_filters(view, filters, largest);
  }
  if (draw != Draw::kKnown) racer = race_view(view, largest, noise, racer, draw == Draw::kFinishRace, team, race);
  const bool keeps = SampleRow<kType, kRows>::wants_kept(params) && knob_at(params.shaping.temperature, row) != 0.0f;
  if (results.wants_logprobs() || keeps) {
    const LogSum log_sum = log_sum_exp(largest, static_cast<double>(view.mass()));
    if (keeps) write_kept_of_view(params, row, view, team, log_sum);
    if (results.wants_logprobs()) {
      if (team.leads()) results.write_logprob(racer.score, log_sum);
      write_top_of_view(results.tops(), view, team, largest, log_sum);
    }
  }
  team.sync();
  return racer.token;
}

// `finish_row`; a row that had finished keeps no tokens.
template <DType kType, Rows kRows>
PYGEN_DEVICE void finish(const SampleRow<kType, kRows>& self, int token, LaunchCounters* counters) {
  const SampleParams& params = self.params;
  if (self.wants_kept(params) && params.state.finished != nullptr && params.state.finished[self.row] != 0)
    write_kept_count(params.kept, self.row, 0, {});
  finish_row(params, self.row, token, counters);
}

// Draws and finishes a row whose candidates the block that leads has. All threads of the row.
template <DType kType, Rows kRows>
PYGEN_DEVICE void draw_row(SampleRow<kType, kRows>& self, void* workspace) {
  auto* counters = static_cast<LaunchCounters*>(workspace);
  uint64_t words[Decision::kWords] = {};
  if (self.team.leads()) {
    const Decision decision = self.decide();
    decision.write(words);
    if (decision.draw == Draw::kNothing) finish(self, decision.racer.token, counters);
  }
  self.team.template take_from_leader<true>(words);
  const Decision decision = Decision::read(words);
  if (decision.draw == Draw::kNothing) return;
  RowView<typename SampleRow<kType, kRows>::Scores>(self.view, self.scores, self.team, decision.temperature,
                                                    decision.largest);
  const int token = draw_from_row<kType, kRows>(self.params, decision.draw, decision.racer, self.team.turn());
  if (self.team.leads()) finish(self, token, counters);
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
  draw_row(self, workspace);
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
Error launch_rows_of(const SampleParams& params, const Context& context) {
  const RowLaunch rows = plan_of<kType>(params, context.device, address_of(sample_rows<kType, kRows>));
  const Launch launch =
      launch_of_rows(params.shaping.rows, rows.geometry, shared_of<kType>(rows, params.shaping.vocab_size), context);
  return launch_kernel(sample_rows<kType, kRows>, launch, params, rows, context.workspace);
}

template <Rows kRows>
Error launch_rows(const SampleParams& params, const Context& context) {
  switch (params.shaping.dtype) {
    case DType::kFloat16: return launch_rows_of<DType::kFloat16, kRows>(params, context);
    case DType::kBFloat16: return launch_rows_of<DType::kBFloat16, kRows>(params, context);
    default: return launch_rows_of<DType::kFloat32, kRows>(params, context);
  }
}

}  // namespace pygen::cuda
