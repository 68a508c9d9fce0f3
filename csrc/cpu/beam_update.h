// What a step's candidates make of the beams: finished hypotheses, running beams, and the rows that hold them.
#pragma once

#include <algorithm>

#include "common/beam_params.h"
#include "cpu/parallel.h"
#include "cpu/row_scores.h"
#include "cpu/scratch.h"

namespace pygen::cpu::PYGEN_ISA {

struct Hypothesis {
  float score;
  int32_t parent;  // counted over all prompts
  int64_t step;
  int64_t token_id;
  bool finished;
};

struct BeamScratch {
  Buffer<float> keys;
  Buffer<int32_t> order;
  Buffer<Hypothesis> pool;
  Buffer<int64_t> parents;  // of the beams that go on, ranks
  Buffer<int64_t> rows;     // that hold them, within the prompt
  Buffer<int64_t> free_rows;
};

// Takes all the memory that an update needs, so that none is left half done for want of it.
inline void reserve_beam_scratch(BeamScratch& scratch, int64_t num_beams, int64_t num_candidates) {
  scratch.keys.reserve(num_beams + num_candidates);
  scratch.order.reserve(num_beams + num_candidates);
  scratch.pool.reserve(num_beams + num_candidates);
  scratch.parents.reserve(num_beams);
  scratch.rows.reserve(num_beams);
  scratch.free_rows.reserve(num_beams);
}

inline BeamScratch& beam_scratch() {
  static thread_local BeamScratch scratch;
  return scratch;
}

// Larger keys first, the lower index first among equals.
struct LargerKey {
  const float* keys;
  bool operator()(int32_t a, int32_t b) const { return keys[a] != keys[b] ? keys[a] > keys[b] : a < b; }
};

class PromptUpdate {
 public:
  PromptUpdate(const BeamParams& params, int64_t prompt)
      : params_(params),
        scratch_(beam_scratch()),
        n_(params.num_beams),
        count_(params.num_candidates),
        step_(step_of(params)),
        is_last_(is_last_step(params, step_)),
        prompt_(prompt),
        first_(prompt * params.num_beams),
        ids_(params.candidate_ids + prompt * params.num_candidates),
        parents_(params.candidate_parents + prompt * params.num_candidates),
        scores_(params.candidate_scores + prompt * params.num_candidates),
        ends_(params.ends + prompt * params.num_candidates) {}

  // Whether every candidate ended.
  bool run() {
    const bool was_open = params_.open[prompt_] != 0;
    update_finished();
    update_running();
    update_open();
    move_rows();
    report(was_open);
    for (int64_t i = 0; i < count_; ++i)
      if (!ended(i)) return false;
    return true;
  }

 private:
  bool exists(int64_t i) const { return ids_[i] >= 0; }

  bool ended(int64_t i) const { return candidate_ends(params_, ids_[i], is_last_, ends_[i] != 0); }

  int64_t num_finished() const {
    int64_t count = 0;
    for (int64_t i = 0; i < n_; ++i) count += params_.finished[first_ + i] != 0;
    return count;
  }

  // Indices of the n largest of `scratch_.keys`.
  const int32_t* largest(int64_t size) {
    int32_t* order = scratch_.order.data();
    for (int64_t i = 0; i < size; ++i) order[i] = static_cast<int32_t>(i);
    std::partial_sort(order, order + n_, order + size, LargerKey{scratch_.keys.data()});
    return order;
  }

  void update_finished() {
    const float normaliser = params_.normalisers[step_];
    const bool is_full = params_.stops_when_full && num_finished() == n_;
    const bool closed = params_.open[prompt_] == 0;
    float* keys = scratch_.keys.data();
    Hypothesis* pool = scratch_.pool.data();
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t at = first_ + i;
      pool[i] = {params_.finished_scores[at], params_.finished_parents[at], params_.finished_steps[at],
                 params_.finished_tokens[at], params_.finished[at] != 0};
    }
    for (int64_t i = 0; i < count_; ++i) {
      const bool joins = i < n_ && exists(i) && ended(i);
      const float score = finished_score(scores_[i], normaliser, is_full, closed, joins);
      pool[n_ + i] = {score, static_cast<int32_t>(first_ + parents_[i]), step_, ids_[i], joins};
    }
    for (int64_t i = 0; i < n_ + count_; ++i) keys[i] = pool[i].score;
    const int32_t* order = largest(n_ + count_);
    for (int64_t i = 0; i < n_; ++i) {
      const Hypothesis& hypothesis = pool[order[i]];
      const int64_t at = first_ + i;
      params_.finished_scores[at] = hypothesis.score;
      params_.finished_parents[at] = hypothesis.parent;
      params_.finished_steps[at] = hypothesis.step;
      params_.finished_tokens[at] = hypothesis.token_id;
      params_.finished[at] = hypothesis.finished;
    }
  }

  void update_running() {
    float* keys = scratch_.keys.data();
    for (int64_t i = 0; i < count_; ++i) keys[i] = running_score(scores_[i], ended(i));
    const int32_t* order = largest(count_);
    int64_t* parents = scratch_.parents.data();
    const int64_t at_step = step_ * params_.shaping.rows + first_;
    for (int64_t j = 0; j < n_; ++j) {
      const int64_t i = order[j];
      parents[j] = exists(i) ? parents_[i] : j;
      params_.running_scores[first_ + j] = keys[i];
      params_.step_tokens[at_step + j] = exists(i) ? ids_[i] : params_.pad_token_id;
      params_.step_parents[at_step + j] = static_cast<int32_t>(first_ + parents[j]);
    }
  }

  void update_open() {
    const float attainable = params_.running_scores[first_] / params_.normalisers[params_.max_new_tokens + step_];
    const int64_t finished = num_finished();
    // Sorted: the worst is the last.
    const float worst = params_.finished_scores[first_ + n_ - 1];
    params_.open[prompt_] = params_.open[prompt_] != 0 && stays_open(attainable, worst, finished > 0, finished == n_);
  }

  int32_t& shared(int64_t a, int64_t b) { return params_.shared[(first_ + a) * n_ + b]; }

  // The first child of a beam stays in its row. Every other one takes, of the rows whose beam left no child, the one
  // that has most in common with its parent's.
  void move_rows() {
    const int64_t* parents = scratch_.parents.data();
    int64_t* rows = scratch_.rows.data();
    int64_t* free_rows = scratch_.free_rows.data();
    for (int64_t r = 0; r < n_; ++r) {
      free_rows[r] = 1;
      params_.source_rows[first_ + r] = first_ + r;
      params_.shared_out[first_ + r] = step_;
    }
    for (int64_t j = 0; j < n_; ++j) {
      const int64_t row = params_.slots[first_ + parents[j]] - first_;
      rows[j] = free_rows[row] != 0 ? row : -1;
      free_rows[row] = 0;
    }
    for (int64_t j = 0; j < n_; ++j) {
      if (rows[j] >= 0) continue;
      const int64_t source = params_.slots[first_ + parents[j]] - first_;
      int64_t target = -1;
      for (int64_t r = 0; r < n_; ++r)
        if (free_rows[r] != 0 && (target < 0 || shared(source, r) > shared(source, target))) target = r;
      free_rows[target] = 0;
      rows[j] = target;
      copy_row(source, target);
    }
    const int64_t column = params_.prompt_length + step_;
    for (int64_t j = 0; j < n_; ++j) {
      const int64_t row = first_ + rows[j];
      const int64_t token_id = params_.step_tokens[step_ * params_.shaping.rows + first_ + j];
      params_.slots[first_ + j] = row;
      params_.append[row * params_.append_stride + column] = token_id;
      if (params_.history != nullptr) params_.history[row * params_.history_stride + column] = token_id;
      params_.token_ids[row] = token_id;
    }
  }

  void copy_row(int64_t source, int64_t target) {
    const int32_t common = shared(source, target);
    params_.source_rows[first_ + target] = first_ + source;
    params_.shared_out[first_ + target] = common;
    copy_columns(params_.append, params_.append_stride, source, target, common);
    if (params_.history != nullptr) copy_columns(params_.history, params_.history_stride, source, target, common);
    for (int64_t r = 0; r < n_; ++r) shared(target, r) = shared(r, target) = shared(source, r);
    shared(target, target) = 0;
    shared(source, target) = shared(target, source) = static_cast<int32_t>(step_);
  }

  void copy_columns(int64_t* table, int64_t stride, int64_t source, int64_t target, int64_t common) const {
    const int64_t* from = table + (first_ + source) * stride + params_.prompt_length;
    std::copy(from + common, from + step_, table + (first_ + target) * stride + params_.prompt_length + common);
  }

  void report(bool was_open) const {
    const bool stuck = !exists(0) && num_finished() == 0;
    for (int64_t r = first_; r < first_ + n_; ++r)
      params_.status[r] = reported_status(params_.status[r], was_open, stuck);
  }

  const BeamParams& params_;
  BeamScratch& scratch_;
  const int64_t n_, count_, step_;
  const bool is_last_;
  const int64_t prompt_, first_;
  const int64_t* ids_;
  const int64_t* parents_;
  const float* scores_;
  const uint8_t* ends_;
};

inline void advance_beams(const BeamParams& params) {
  const int64_t prompts = params.shaping.rows / params.num_beams;
  reserve_beam_scratch(beam_scratch(), params.num_beams, params.num_candidates);
  bool all_ended = true, all_finished = true;
  int64_t open = 0;
  for (int64_t prompt = 0; prompt < prompts; ++prompt) {
    all_ended &= PromptUpdate(params, prompt).run();
    open += params.open[prompt] != 0;
  }
  for (int64_t i = 0; i < params.shaping.rows; ++i) all_finished &= params.finished[i] != 0;
  *params.unfinished = search_is_over(params, all_ended, all_finished) ? 0 : open;
  if (params.steps == nullptr) return;
  for (int64_t row = 0; row < params.shaping.rows; ++row) ++params.steps[row];
}

}  // namespace pygen::cpu::PYGEN_ISA
