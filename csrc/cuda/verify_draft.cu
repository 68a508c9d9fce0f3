// verify_draft: the blocks of a row check its positions until a draft is refused. A position costs one read of the
// target's logits, which gives log-sum-exp and the maxima of tiles, and one of the draft's. The race for the token
// behind the accepted drafts reads the target's once more.
#include <algorithm>

#include "common/speculative.h"
#include "cuda/geometry.h"
#include "cuda/logit_at.cuh"

namespace pygen::cuda {
namespace {

// ln softmax(x / temperature) of one position's logits x, the quotient in float32.
struct LogSoftmax {
  const void* logits;
  DType dtype;
  float temperature;
  float max_score;  // of x; NaN does not count
  float largest;    // over the temperature
  double log_sum;   // of e^(x / temperature - largest)
  RowStatus status;

  PYGEN_DEVICE double of_score(float score) const { return static_cast<double>(score) - largest - log_sum; }
  PYGEN_DEVICE double of_token(int token) const { return of_score(logit_at(dtype, logits, token) / temperature); }
};

PYGEN_HOST_DEVICE ShapingParams one_row(const void* logits, int64_t vocab_size) {
  ShapingParams params;
  params.rows = 1;
  params.vocab_size = vocab_size;
  params.logits = logits;
  return params;
}

template <DType kType>
using PositionScores = RowScores<kType, false>;

template <DType kDType>
PYGEN_DEVICE const void* position_at(const void* logits, int64_t offset) {
  return static_cast<const char*>(logits) + offset * LogitVector<kDType>::kBytes;
}

// Scans a position. All threads of the row, which get the result.
template <DType kType>
PYGEN_COLD LogSoftmax scan_position(PositionScores<kType>& scores, const ShapingParams& position, float temperature,
                                    RowTeam& team) {
  const RowSmem& smem = team.smem();
  scores.start();
  scores.hide_extra(position, 0, team.leads(), smem.reduce);
  if (team.leads()) scores.score_extra();
  scores.template scan<Keep::kSums>(temperature, NoVisit{});
  scores.bring_together(team.cluster());
  uint64_t words[3] = {};
  if (team.leads()) {
    const RowFacts facts = facts_of_row(scores, smem);
    double log_sum = 0.0;
    if (facts.status == kOk) {
      const float fitting = fitting_temperature(temperature, facts.max_score);
      const float largest = facts.max_score / fitting;
      log_sum = ln(masses_of_row(scores, fitting, largest, kInfinity, smem.reduce).all / kMassUnits);
    }
    words[0] = static_cast<uint64_t>(__double_as_longlong(log_sum));
    words[1] = bits_of(facts.max_score);
    words[2] = static_cast<uint64_t>(facts.status);
  }
  team.take_from_leader(words);
  const float max_score = float_of(static_cast<uint32_t>(words[1]));
  const auto status = static_cast<RowStatus>(words[2]);
  if (status == kOk) temperature = fitting_temperature(temperature, max_score);
  return {position.logits,
          kType,
          temperature,
          max_score,
          max_score / temperature,
          __longlong_as_double(static_cast<long long>(words[0])),
          status};
}

// What a token's probability in the race is made of.
enum class Weights {
  kTarget,    // p
  kOthers,    // p, but for the draft
  kResidual,  // max(p - q, 0)
};

// The share of p with which tokens race.
struct Share {
  Weights weights;
  LogSoftmax target, draft;
  int draft_id;

  // ln of it, -inf for none.
  PYGEN_DEVICE double operator()(float score, int token) const {
    if (weights != Weights::kResidual) return weights == Weights::kOthers && token == draft_id ? kNoWeight : 0.0;
    return log_residual_share(target.of_score(score), draft.of_token(token));
  }
  // In float32.
  PYGEN_DEVICE float about(float score, int token) const {
    if (weights != Weights::kResidual) return weights == Weights::kOthers && token == draft_id ? -kInfinity : 0.0f;
    const double ratio = draft.of_token(token) - target.of_score(score);
    return ratio < 0 ? logf(-expm1f(static_cast<float>(ratio))) : -kInfinity;
  }
};

// The token that wins; -1 where none has a share. All threads of the row.
template <DType kType>
PYGEN_COLD int race_shares(const ViewSmem<PositionScores<kType>>& view_smem, const PositionScores<kType>& scores,
                           const Share& share, const RowNoise& noise, RowTeam& team, const RaceSmem& smem) {
  const float temperature = share.target.temperature;
  const RowView<PositionScores<kType>> view(view_smem, scores, team, temperature, share.target.largest);
  Racer own;
  view.for_each([&](float score, int token) {
    const float value = value_about(score, noise.about(token));
    // A share is at most 1: nearly all end here.
    if (value < bar_below(own.best)) return;
    const float of_share = share.about(score, token);
    if (of_share > -kInfinity) own.offer(fmaxf(value + of_share, kLowestFloat), token, score);
  });
  send_best(own, FasterRacer{}, team, smem.racers);
  team.sync();
  const Racer racer = best_of_blocks(FasterRacer{}, team, smem.racers);
  if (racer.token < 0 || racer.clear()) return racer.token;
  return race_exactly(view, share.target.largest, noise, racer, team, smem, share).token;
}

// One row, with all its threads.
template <DType kDType>
class Verification {
 public:
  PYGEN_DEVICE Verification(const DraftParams& params, int64_t row, const RowLaunch& target, const RowLaunch& draft,
                            RowTeam& team, const RaceSmem& race_smem, const ViewSmem<PositionScores<kDType>>& view,
                            const SharedMemory& shared)
      : params_(params),
        row_(row),
        target_(target),
        draft_(draft),
        team_(team),
        race_smem_(race_smem),
        view_(view),
        shared_(shared),
        temperature_(knob_at(params.temperature, row)) {}

  PYGEN_DEVICE void run() {
    int64_t length = knob_at(params_.lengths, row_);
    length = length < 0 ? 0 : length > params_.num_drafts ? params_.num_drafts : length;
    int64_t position = 0;
    while (stays(position, position < length ? draft_at(position) : -1)) ++position;
    if (!team_.leads() || thread_index() != 0) return;
    params_.accepted[row_] = position;
    params_.token_ids[row_] = token_;
    params_.status[row_] = status_;
  }

 private:
  // -1 without a draft.
  PYGEN_DEVICE int draft_at(int64_t position) const {
    const int64_t id = params_.draft_ids[row_ * params_.draft_ids_stride + position];
    return id >= 0 && id < params_.vocab_size ? static_cast<int>(id) : -1;
  }

  // Whether the draft of a position stays; if not, `token_` and `status_` are what follows.
  PYGEN_DEVICE bool stays(int64_t position, int draft_id) {
    const bool greedy = temperature_ == 0.0f;
    const bool has_scores = params_.draft != nullptr && draft_id >= 0 && !greedy;
    LogSoftmax draft{};
    if (has_scores) draft = scan_draft_at(position);

    const void* logits = position_at<kDType>(
        params_.target, row_ * params_.target_row_stride + position * params_.target_position_stride);
    SharedMemory shared = shared_;
    const ShapingParams target_position = one_row(logits, params_.vocab_size);
    PositionScores<kDType> scores(target_position, target_, 0, rank_in_row(target_.geometry), nullptr,
                                  team_.smem().slots, shared);
    const float temperature = greedy ? 1.0f : temperature_;
    const LogSoftmax target = scan_position(scores, target_position, temperature, team_);
    status_ = target.status == kOk && has_scores ? draft.status : target.status;
    if (status_ != kOk || greedy) {
      uint64_t token = 0;
      if (team_.leads()) token = static_cast<uint64_t>(lowest_token_of(scores, team_.smem(), target.max_score));
      token_ = static_cast<int>(team_.from_leader(token));
      return status_ == kOk && token_ == draft_id;
    }

    Weights weights = Weights::kTarget;
    if (draft_id >= 0) {
      const float uniform = acceptance_uniform(params_, row_, position, static_cast<uint32_t>(draft_id));
      if (draft_stays(target.of_token(draft_id), has_scores ? draft.of_token(draft_id) : 0.0, uniform)) return true;
      weights = has_scores ? Weights::kResidual : Weights::kOthers;
    }
    const RowNoise noise(params_, row_, draft_step(params_, row_, position));
    token_ = race_shares(view_, scores, Share{weights, target, draft, draft_id}, noise, team_, race_smem_);
    // Through rounding there may be no residual; and given noise may be NaN everywhere.
    if (token_ < 0 && draft_id >= 0)
      token_ = race_shares(view_, scores, Share{Weights::kTarget, target, draft, draft_id}, noise, team_, race_smem_);
    if (token_ < 0) token_ = 0;
    return false;
  }

  PYGEN_DEVICE LogSoftmax scan_draft_at(int64_t position) const {
    switch (params_.draft_dtype) {
      case DType::kFloat16: return scan_draft_of<DType::kFloat16>(position);
      case DType::kBFloat16: return scan_draft_of<DType::kBFloat16>(position);
      default: return scan_draft_of<DType::kFloat32>(position);
    }
  }
  template <DType kDraft>
  PYGEN_DEVICE LogSoftmax scan_draft_of(int64_t position) const {
    const void* logits =
        position_at<kDraft>(params_.draft, row_ * params_.draft_row_stride + position * params_.draft_position_stride);
    SharedMemory shared = shared_;
    const ShapingParams position_of_draft = one_row(logits, params_.vocab_size);
    PositionScores<kDraft> scores(position_of_draft, draft_, 0, rank_in_row(draft_.geometry), nullptr,
                                  team_.smem().slots, shared);
    return scan_position(scores, position_of_draft, temperature_, team_);
  }

  const DraftParams& params_;
  const int64_t row_;
  const RowLaunch& target_;
  const RowLaunch& draft_;
  RowTeam& team_;
  const RaceSmem& race_smem_;
  const ViewSmem<PositionScores<kDType>>& view_;
  const SharedMemory& shared_;  // free for the scores of one position after the other
  const float temperature_;
  int token_ = 0;
  RowStatus status_ = kOk;
};

template <DType kDType>
__global__ void __launch_bounds__(kThreads, 1)
    verify_rows(const DraftParams params, const RowLaunch target, const RowLaunch draft) {
  SharedMemory shared;
  const ViewSmem<PositionScores<kDType>> view(shared);
  const RowWords words(shared);
  const RaceSmem race_smem(shared);
  const RowSmem smem(words, target.geometry, shared);
  RowTeam team(target.geometry.cluster, smem);
  const int64_t row = cluster_index();
  Verification<kDType>(params, row, target, draft, team, race_smem, view, shared).run();
}

template <DType kDType>
RowLaunch plan(const DraftParams& params, const Device& device, Kernel kernel) {
  ShapingParams logits = one_row(nullptr, params.vocab_size);
  logits.rows = params.rows;
  RowNeeds needs;
  needs.sums = true;
  return plan_rows<kDType>(logits, device, kernel, needs, true, false);
}

template <DType kDType>
Error launch_rows(const DraftParams& params, const Context& context) {
  const Kernel kernel = address_of(verify_rows<kDType>);
  RowLaunch target = plan<kDType>(params, context.device, kernel);
  // Both half types are cut alike.
  const bool half = params.draft_dtype != DType::kFloat32;
  RowLaunch draft = half ? plan<DType::kFloat16>(params, context.device, kernel)
                         : plan<DType::kFloat32>(params, context.device, kernel);
  // Both are read through the same slots.
  target.geometry.slots = draft.geometry.slots = std::max(target.geometry.slots, draft.geometry.slots);
  const size_t of_target = shared_of<kDType>(target, params.vocab_size);
  const size_t of_draft = half ? shared_of<DType::kFloat16>(draft, params.vocab_size)
                               : shared_of<DType::kFloat32>(draft, params.vocab_size);
  const Launch launch =
      launch_of_rows(params.rows, target.geometry, of_target > of_draft ? of_target : of_draft, context);
  return launch_kernel(verify_rows<kDType>, launch, params, target, draft);
}

}  // namespace

Error verify_draft(const DraftParams& params, const Context& context) {
  if (params.rows == 0) return 0;
  switch (params.target_dtype) {
    case DType::kFloat16: return launch_rows<DType::kFloat16>(params, context);
    case DType::kBFloat16: return launch_rows<DType::kBFloat16>(params, context);
    default: return launch_rows<DType::kFloat32>(params, context);
  }
}

}  // namespace pygen::cuda
