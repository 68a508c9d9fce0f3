// sample: one launch from raw logits to token, log-probabilities and the row's bookkeeping. One pass over a row's
// logits gives the maxima of its tiles. The filters and the race then read only the few tiles that can hold a survivor.
// Exact: no threshold is sampled. Bytes per row: one read of the logits. Where the survivors are too many for a list,
// the row is read again: from shared memory where a cluster holds it, else through the cache.
#include <climits>

#include "cuda/bookkeeping.cuh"
#include "cuda/geometry.h"
#include "cuda/top_logprobs.cuh"

namespace pygen::cuda {
namespace {

constexpr float kNaN = __builtin_nanf("");

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
    const int64_t at = row_ * params_.num_logprobs;
    return {params_.top_ids + at, params_.top_logprobs + at, params_.num_logprobs};
  }
  PYGEN_DEVICE void write_no_logprobs() const {
    if (thread_index() == 0) params_.logprobs[row_] = kNaN;
    tops().write_none();
  }

 private:
  const SampleParams& params_;
  int64_t row_;
};

// Writes the log-probabilities of a row whose survivors are too many for a list. All threads of the row.
template <DType kDType>
PYGEN_DEVICE void write_logprobs_of_row(const Results& results, RowView<kDType>& view, RowTeam& team, float score,
                                        float largest) {
  const LogSum log_sum = log_sum_exp(largest, static_cast<double>(view.mass()));
  if (team.leads()) results.write_logprob(score, log_sum);
  write_top_of_view(results.tops(), view, team, largest, log_sum);
}

// What the last steps of a row need. The rarely used functions take a copy, so that the original stays in registers.
template <DType kDType>
struct Drawing {
  const SampleParams& params;
  int64_t row;
  RowScores<kDType> scores;
  RowTeam team;
  RaceSmem smem;
  Filters filters;
  RowNoise noise;
  float largest;  // score over the temperature
};

enum class Draw { kFilter, kFinishRace, kKnown };

// Filters, race and log-probabilities of the whole row, where no list is enough. `racer`: the winner as far as known.
template <DType kDType>
PYGEN_COLD Racer draw_from_row(Drawing<kDType> d, Draw draw, Racer racer, bool logprobs) {
  RowView<kDType> view(d.scores, d.team, d.filters.temperature, d.largest);
  if (draw == Draw::kFilter) {
    apply_filters(view, d.filters, d.largest);
    racer = race_row(d.scores, view, d.filters.temperature, d.largest, d.noise, d.team, d.smem);
  } else if (draw == Draw::kFinishRace) {
    racer = race_exactly(view, d.largest, d.noise, racer, d.team, d.smem);
  }
  if (logprobs) write_logprobs_of_row(Results(d.params, d.row), view, d.team, racer.score, d.largest);
  return racer;
}

// Draws the row's token and writes its log-probabilities. All threads of the row; the leader's get the token.
template <DType kDType>
PYGEN_DEVICE int draw_row(const SampleParams& params, int64_t row, const RowScores<kDType>& scores, RowTeam& team,
                          const RaceSmem& race_smem) {
  const Results results(params, row);
  bool greedy, unfiltered;
  Racer racer;
  RowFacts facts;
  {
    // Filters and noise are read again after the scan, which needs the registers.
    const Filters filters = filters_of(params.shaping, row);
    const RowNoise noise(params, row, knob_at(params.step, row));
    greedy = is_greedy(filters);
    unfiltered = !greedy && !has_filters(filters);
    const float temperature = greedy ? 1.0f : filters.temperature;
    float bar = -kInfinity;
    const bool nan =
        scores.scan(temperature, [&](const float (&x)[RowScores<kDType>::kCount], int token, float max_score) {
          if (unfiltered) race_vector(x, token, max_score, temperature, noise, racer, bar);
        });
    if (unfiltered) send_best(racer, FasterRacer{}, team, race_smem.racers);
    facts = facts_of_scan(scores, team, nan);
    // With a temperature that does not fit, the scan raced infinities.
    unfiltered = unfiltered && fitting_temperature(temperature, facts.max_score) == temperature;
  }
  if (team.leads() && thread_index() == 0) params.status[row] = facts.status;

  if (facts.status != kOk || greedy) {
    racer.token = lowest_token_of(scores, team, facts.max_score);
    racer.score = facts.max_score;
    if (facts.status != kOk && results.wants_logprobs() && team.leads()) results.write_no_logprobs();
    if (facts.status != kOk || !results.wants_logprobs()) return racer.token;
  } else if (unfiltered) {
    racer = best_of_blocks(FasterRacer{}, team, race_smem.racers);
  }
  Filters filters = greedy ? Filters() : filters_of(params.shaping, row);
  filters.temperature = fitting_temperature(filters.temperature, facts.max_score);
  const float largest = facts.max_score / filters.temperature;
  const RowNoise noise(params, row, knob_at(params.step, row));
  const Drawing<kDType> drawing{params, row, scores, team, race_smem, filters, noise, largest};
  if (unfiltered && !racer.clear())
    return draw_from_row(drawing, Draw::kFinishRace, racer, results.wants_logprobs()).token;
  const bool known = greedy || unfiltered;
  if (known && !results.wants_logprobs()) return racer.token;

  const bool listed =
      filter_list(scores, team, filters, largest, results.wanted_tops(), [&](const SortedList& list, double mass) {
        if (!known) racer = race_list(list, noise, race_smem);
        if (!results.wants_logprobs()) return;
        const LogSum log_sum = log_sum_exp(largest, mass);
        results.write_logprob(racer.score, log_sum);
        results.tops().write(list, 0, true, log_sum);
      });
  if (listed) return racer.token;
  return draw_from_row(drawing, known ? Draw::kKnown : Draw::kFilter, racer, results.wants_logprobs()).token;
}

template <DType kDType>
__global__ void __launch_bounds__(kThreads, 1) sample_rows(const __grid_constant__ SampleParams params,
                                                           const __grid_constant__ RowLaunch launch, void* workspace) {
  const int cluster = launch.geometry.cluster;
  const int64_t row = blockIdx.x / cluster;
  auto* counters = static_cast<LaunchCounters*>(workspace);
  auto* words = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + kCounterBytes);
  uint32_t* dense = launch.dense ? words + row * params.shaping.vocab_size : nullptr;

  SharedMemory shared;
  const RowSmem smem(shared);
  const RaceSmem race_smem(shared);
  RowTeam team(cluster, smem);
  const RowScores<kDType> scores(params.shaping, launch.geometry, row, launch.table_slots, dense, launch.sums, shared);
  team.sync();
  const int token = draw_row(params, row, scores, team, race_smem);
  __syncthreads();
  scores.penalized().release(params.shaping, row, scores.layout());
  if (launch.dense) team.sync();
  if (!team.leads() || thread_index() >= kWarp) return;

  int64_t taken = token;
  bool still_open = false;
  if (params.state.token_ids != nullptr)
    taken = extend_sequence(params.state, row, knob_at(params.step, row), token, still_open);
  if (thread_index() != 0) return;
  params.token_ids[row] = taken;
  leave(params, counters, still_open);
}

template <DType kDType>
Error launch_sample(const SampleParams& params, const Context& context) {
  const ShapingParams& shaping = params.shaping;
  const bool filtered = may_have_filters(shaping);
  const bool small = first_filter_is_small(shaping);
  const bool logprobs = params.logprobs != nullptr;
  const bool sums = logprobs || (may_differ(shaping.top_p, 1.0f) && !small);
  const bool rereads = filtered && !small && shaping.vocab_size > kListCapacity;
  const RowLaunch rows = plan_rows<kDType>(shaping, context.device, address_of(sample_rows<kDType>), sums, rereads);
  const Launch launch = launch_of_rows(shaping.rows, rows.geometry, shared_of<kDType>(rows), context);
  return launch_kernel(sample_rows<kDType>, launch, params, rows, context.workspace);
}

}  // namespace

size_t sample_workspace(const SampleParams& params, const Device& device) {
  return kCounterBytes + penalties_workspace(params.shaping, device);
}

Error sample(const SampleParams& params, const Context& context) {
  if (params.shaping.rows == 0) return 0;
  SampleParams own = params;
  if (own.rng == Rng::kTorch && own.torch_noise.threads == 0)
    set_torch_launch(own.torch_noise, own.shaping.rows * own.shaping.vocab_size, context.device.multiprocessors,
                     context.device.threads_per_multiprocessor);
  switch (own.shaping.dtype) {
    case DType::kFloat16: return launch_sample<DType::kFloat16>(own, context);
    case DType::kBFloat16: return launch_sample<DType::kBFloat16>(own, context);
    default: return launch_sample<DType::kFloat32>(own, context);
  }
}

}  // namespace pygen::cuda
