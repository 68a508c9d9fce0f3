// verify_draft: position after position of a row until a draft is refused. A position costs one read of the target's
// logits, which gives log-sum-exp and block maxima, and one of the drafts'; the race for the token behind the accepted
// drafts then looks at the few blocks whose maximum can still win.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/speculative.h"
#include "common/temperature.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/race.h"
#include "cpu/row_scores.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

ShapingParams one_row(const void* logits, int64_t offset, DType dtype, int64_t vocab_size) {
  ShapingParams params;
  params.rows = 1;
  params.vocab_size = vocab_size;
  params.dtype = dtype;
  params.logits = static_cast<const char*>(logits) + offset * (dtype == DType::kFloat32 ? 4 : 2);
  return params;
}

// ln softmax(x / temperature) of one row of logits x, the quotient in float32.
class LogSoftmax {
 public:
  LogSoftmax(const ShapingParams& params, float temperature, Scratch& scratch)
      : row_(params, 0, scratch), temperature_(temperature) {}

  RowScores& row() { return row_; }
  const RowScores& row() const { return row_; }
  float temperature() const { return temperature_; }

  void scan(int threads) {
    const float scale = std::min(1.0f / temperature_, std::numeric_limits<float>::max());
    log_sum_ = row_.scan_log_sum(threads, scale);
    fit_temperature();
  }
  void scan_maxima(int threads) {
    row_.scan(threads);
    fit_temperature();
  }
  RowStatus status() const { return row_.status(); }
  float largest() const { return row_.max_score() / temperature_; }
  double of_score(float score) const { return static_cast<double>(score) - largest() - log_sum_; }
  double of_token(int64_t token_id) const { return of_score(row_.logit(token_id) / temperature_); }

 private:
  void fit_temperature() {
    if (status() == kOk) temperature_ = fitting_temperature(temperature_, row_.max_score());
  }

  RowScores row_;
  float temperature_;
  double log_sum_ = 0;
};

// Hands a race among p on as one among max(p - q, 0).
struct Residual {
  Winner& winner;
  const float origin;
  const LogSoftmax& target;
  const LogSoftmax* draft;  // null: q is 1 at `draft_id`
  int64_t draft_id;

  double log_share(int64_t token_id, float score) const {
    if (draft == nullptr) return token_id == draft_id ? kNoWeight : 0.0;
    return log_residual_share(target.of_score(score), draft->of_token(token_id));
  }
  void offer(double value, int64_t token_id, float score) {
    const double share = log_share(token_id, score);
    if (share != kNoWeight) winner.offer(value + share, token_id, score);
  }
  float bar() const { return winner.bar(); }
};

// The verdict on one position.
struct Verdict {
  bool accepted = false;
  int64_t token_id = 0;  // what follows the accepted drafts, where this one is not among them
  RowStatus status = kOk;
};

class Row {
 public:
  Row(const DraftParams& params, int64_t row, int threads)
      : params_(params), row_(row), threads_(threads), temperature_(knob_at(params.temperature, row)) {}

  void verify() const {
    const int64_t length = std::clamp<int64_t>(knob_at(params_.lengths, row_), 0, params_.num_drafts);
    for (int64_t i = 0;; ++i) {
      const int64_t draft = i < length ? params_.draft_ids[row_ * params_.draft_ids_stride + i] : -1;
      const bool drafted = draft >= 0 && draft < params_.vocab_size;
      const Verdict verdict = temperature_ == 0.0f ? judge_greedy(i, draft)
                              : drafted            ? judge(i, draft)
                                                   : draw_behind(i);
      if (verdict.accepted) continue;
      params_.accepted[row_] = i;
      params_.token_ids[row_] = verdict.token_id;
      params_.status[row_] = verdict.status;
      return;
    }
  }

 private:
  ShapingParams target_at(int64_t i) const {
    const int64_t offset = row_ * params_.target_row_stride + i * params_.target_position_stride;
    return one_row(params_.target, offset, params_.target_dtype, params_.vocab_size);
  }
  ShapingParams draft_at(int64_t i) const {
    const int64_t offset = row_ * params_.draft_row_stride + i * params_.draft_position_stride;
    return one_row(params_.draft, offset, params_.draft_dtype, params_.vocab_size);
  }

  Verdict judge_greedy(int64_t i, int64_t draft) const {
    const ShapingParams logits = target_at(i);
    RowScores target(logits, 0, thread_scratch());
    target.scan(threads_);
    const int64_t best = target.argmax();
    return {target.status() == kOk && best == draft, best, target.status()};
  }

  Verdict judge(int64_t i, int64_t draft_id) const {
    Scratch& scratch = thread_scratch();
    const bool certain = params_.draft == nullptr;
    const ShapingParams target_logits = target_at(i), draft_logits = certain ? target_logits : draft_at(i);
    LogSoftmax draft(draft_logits, temperature_, scratch);
    // The target comes last: its block maxima, which the race needs, stay in the scratch memory.
    if (!certain) draft.scan(threads_);
    LogSoftmax target(target_logits, temperature_, scratch);
    target.scan(threads_);
    const RowStatus status = target.status() != kOk || certain ? target.status() : draft.status();
    if (status != kOk) return {false, target.row().argmax(), status};

    const double p = target.of_token(draft_id);
    const double q = certain ? 0.0 : draft.of_token(draft_id);
    const float uniform = acceptance_uniform(params_, row_, i, static_cast<uint32_t>(draft_id));
    if (draft_stays(p, q, uniform)) return {true, draft_id, kOk};
    const int64_t recovered = race(target, i, [&](Winner& winner) {
      return Residual{winner, winner.origin, target, certain ? nullptr : &draft, draft_id};
    });
    return {false, recovered >= 0 ? recovered : draw(target, i), kOk};
  }

  Verdict draw_behind(int64_t i) const {
    const ShapingParams logits = target_at(i);
    LogSoftmax target(logits, temperature_, thread_scratch());
    target.scan_maxima(threads_);
    const RowStatus status = target.status();
    return {false, status == kOk ? draw(target, i) : target.row().argmax(), status};
  }

  int64_t draw(const LogSoftmax& target, int64_t i) const {
    const int64_t token_id = race(target, i, [](Winner& winner) -> Winner& { return winner; });
    // Given noise may be NaN everywhere.
    return token_id >= 0 ? token_id : target.row().argmax();
  }

  // The winner among the target's scores of position i, offered through entry(winner); -1 if nothing was let in.
  template <typename Entry>
  int64_t race(const LogSoftmax& target, int64_t i, const Entry& entry) const {
    if (params_.rng == Rng::kGiven)
      return race_with(target, GivenNoise{params_.noise + row_ * params_.noise_stride, params_.vocab_size}, entry);
    const uint64_t seed = static_cast<uint64_t>(params_.seeds[row_]);
    return race_with(target, PhiloxNoise(seed, draft_step(params_, row_, i)), entry);
  }

  template <typename Noise, typename Entry>
  int64_t race_with(const LogSoftmax& target, const Noise& noise, const Entry& entry) const {
    const RowScores& row = target.row();
    const float temperature = target.temperature();
    const auto get = [&](int64_t b, float* buffer) -> const float* {
      const float* logits = row.block(b, buffer);
      for (int64_t j = 0; j < kBlock; ++j) buffer[j] = logits[j] / temperature;
      return buffer;
    };
    const auto max_of = [&](int64_t b) { return row.block_max()[b] / temperature; };
    const auto finish = [](float score) { return score; };
    return race_in_parts(row.blocks(), noise, threads_, target.largest(),
                         [&](int64_t begin, int64_t end, Noise& own, Winner& winner, int) {
                           auto&& entrance = entry(winner);
                           race_blocks(begin, end, own, max_of, get, 1.0f, finish, -kInf, kInf, entrance);
                         })
        .token_id;
  }

  const DraftParams& params_;
  const int64_t row_;
  const int threads_;
  const float temperature_;
};

}  // namespace

void verify_draft(const DraftParams& params) {
  const Split split = split_threads(params.rows, params.vocab_size, params.threads);
  parallel_rows(params.rows, split.over_rows, [&](int64_t row) { Row(params, row, split.in_row).verify(); });
}

}  // namespace pygen::cpu::PYGEN_ISA
