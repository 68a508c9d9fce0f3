// Updates the beams of a prompt with a step's candidates, by a block: finished hypotheses, running beams and their
// rows. csrc/cpu/beam_update.h does the same with loops.
#pragma once

#include <climits>

#include "cuda/beam_merge.cuh"

namespace pygen::cuda {

// Entries of the table of shared positions that the choice of rows keeps in shared memory.
constexpr int kStagedShared = 8192;

PYGEN_HOST_DEVICE int staged_shared(int64_t num_beams) {
  return static_cast<int>(num_beams * num_beams < kStagedShared ? num_beams * num_beams
                          : num_beams > kStagedShared           ? num_beams
                                                                : kStagedShared);
}

// Sums over the prompts, and how many have added theirs. In the workspace, zero between launches.
struct BeamTotals {
  int arrived;
  int open;
  int not_ended;     // prompts with a candidate that goes on
  int not_finished;  // prompts with fewer hypotheses than beams
};

class PromptUpdate {
 public:
  PYGEN_DEVICE PromptUpdate(const BeamParams& params, int64_t prompt, const PromptCandidates& candidates,
                            const Ranking& ranking, SharedMemory& memory)
      : params_(params),
        step_(step_of(params)),
        is_last_(is_last_step(params, step_)),
        prompt_(prompt),
        first_(prompt * params.num_beams),
        n_(static_cast<int>(params.num_beams)),
        count_(static_cast<int>(params.num_candidates)),
        candidates_(candidates),
        ranking_(ranking),
        ends_(memory.take<int>(count_)),
        pool_scores_(memory.take<float>(n_)),
        pool_steps_(memory.take<int64_t>(n_)),
        pool_tokens_(memory.take<int64_t>(n_)),
        pool_parents_(memory.take<int>(n_)),
        pool_finished_(memory.take<int>(n_)),
        sources_(memory.take<int>(n_)),
        rows_(memory.take<int>(n_)),
        owner_(memory.take<int>(n_)),
        origin_(memory.take<int>(n_)),
        common_(memory.take<int>(n_)),
        movers_(memory.take<int>(n_)),
        num_movers_(memory.take<int>(1)),
        staged_(memory.take<int>(staged_shared(params.num_beams))) {}

  // Entries that the ranking has to hold.
  static int64_t ranked(const BeamParams& params) { return params.num_beams + params.num_candidates; }
  static size_t bytes(const BeamParams& params) {
    return params.num_candidates * 4 + params.num_beams * (4 + 8 + 8 + 8 * 4) + staged_shared(params.num_beams) * 4 +
           15 * 16;
  }

  PYGEN_DEVICE void run(BeamTotals* totals) const {
    const bool was_open = params_.open[prompt_] != 0;
    const bool all_ended = find_ends();
    const int finished = update_finished(was_open);
    update_running();
    const bool open =
        was_open && stays_open(ranking_score(), params_.finished_scores[first_ + n_ - 1], finished > 0, finished == n_);
    move_rows();
    report(was_open, finished);
    count_step();
    if (thread_index() != 0) return;
    params_.open[prompt_] = open;
    add_to_totals(totals, open, !all_ended, finished < n_);
  }

 private:
  PYGEN_DEVICE bool exists(int i) const { return candidates_.ids.get(i) >= 0; }

  PYGEN_DEVICE void rank(int i, float score) const {
    ranking_.set(i, ordered_key(static_cast<double>(score)), i, score);
  }

  // Whether every candidate ends.
  PYGEN_DEVICE bool find_ends() const {
    bool all = true;
    for (int i = thread_index(); i < count_; i += kThreads) {
      const bool criteria = params_.ends[prompt_ * count_ + i] != 0;
      const bool ends = candidate_ends(params_, candidates_.ids.get(i), is_last_, criteria);
      ends_.set(i, ends);
      all &= ends;
    }
    return __syncthreads_and(all) != 0;
  }

  // Returns how many finished hypotheses the prompt has afterwards.
  PYGEN_DEVICE int update_finished(bool was_open) const {
    bool all = true;
    for (int i = thread_index(); i < n_; i += kThreads) {
      const int64_t at = first_ + i;
      pool_scores_.set(i, params_.finished_scores[at]);
      pool_steps_.set(i, params_.finished_steps[at]);
      pool_tokens_.set(i, params_.finished_tokens[at]);
      pool_parents_.set(i, params_.finished_parents[at]);
      pool_finished_.set(i, params_.finished[at]);
      all &= params_.finished[at] != 0;
    }
    const bool is_full = __syncthreads_and(all) != 0 && params_.stops_when_full;
    for (int i = thread_index(); i < n_; i += kThreads) rank(i, pool_scores_.get(i));
    for (int i = thread_index(); i < count_; i += kThreads) rank(n_ + i, score_if_finished(i, is_full, was_open));
    ranking_.sort(n_ + count_);
    int finished = 0;
    for (int first = 0; first < n_; first += kThreads) {
      const int i = first + thread_index();
      bool holds = false;
      if (i < n_) {
        const int index = ranking_.index(i);
        holds = index < n_ ? keep(i, index) : join(i, index - n_, is_full, was_open);
      }
      finished += __syncthreads_count(holds);
    }
    return finished;
  }

  PYGEN_DEVICE bool joins(int i) const { return i < n_ && exists(i) && ends_.get(i) != 0; }
  PYGEN_DEVICE float score_if_finished(int i, bool is_full, bool was_open) const {
    return finished_score(candidates_.scores.get(i), params_.normalisers[step_], is_full, !was_open, joins(i));
  }

  PYGEN_DEVICE bool keep(int to, int from) const {
    const int64_t at = first_ + to;
    params_.finished_scores[at] = pool_scores_.get(from);
    params_.finished_steps[at] = pool_steps_.get(from);
    params_.finished_tokens[at] = pool_tokens_.get(from);
    params_.finished_parents[at] = pool_parents_.get(from);
    params_.finished[at] = static_cast<uint8_t>(pool_finished_.get(from) != 0);
    return pool_finished_.get(from) != 0;
  }

  PYGEN_DEVICE bool join(int to, int from, bool is_full, bool was_open) const {
    const int64_t at = first_ + to;
    params_.finished_scores[at] = score_if_finished(from, is_full, was_open);
    params_.finished_steps[at] = step_;
    params_.finished_tokens[at] = candidates_.ids.get(from);
    params_.finished_parents[at] = static_cast<int32_t>(first_ + candidates_.parents.get(from));
    params_.finished[at] = joins(from);
    return joins(from);
  }

  PYGEN_DEVICE float score_if_running(int i) const {
    return running_score(candidates_.scores.get(i), ends_.get(i) != 0);
  }

  PYGEN_DEVICE void update_running() const {
    for (int i = thread_index(); i < count_; i += kThreads) rank(i, score_if_running(i));
    ranking_.sort(count_);
    const int64_t at_step = step_ * params_.shaping.rows + first_;
    for (int j = thread_index(); j < n_; j += kThreads) {
      const int i = ranking_.index(j);
      const int parent = exists(i) ? candidates_.parents.get(i) : j;
      params_.running_scores[first_ + j] = score_if_running(i);
      params_.step_tokens[at_step + j] = token_of(j);
      params_.step_parents[at_step + j] = static_cast<int32_t>(first_ + parent);
      sources_.set(j, static_cast<int>(params_.slots[first_ + parent] - first_));
    }
  }

  // That the beam of rank j feeds to the model, while the ranking is that of the running beams.
  PYGEN_DEVICE int64_t token_of(int j) const {
    const int i = ranking_.index(j);
    return exists(i) ? candidates_.ids.get(i) : params_.pad_token_id;
  }

  // Of the best running beam, at the length at which it is compared.
  PYGEN_DEVICE float ranking_score() const {
    return score_if_running(ranking_.index(0)) / params_.normalisers[params_.max_new_tokens + step_];
  }

  // The first child of a beam stays in its row. Every other one takes, of the rows whose beam left no child, the one
  // that has most in common with its parent's.
  PYGEN_DEVICE void move_rows() const {
    for (int r = thread_index(); r < n_; r += kThreads) {
      owner_.set(r, INT_MAX);
      origin_.set(r, r);
      common_.set(r, static_cast<int>(step_));
    }
    __syncthreads();
    for (int j = thread_index(); j < n_; j += kThreads) owner_.min(sources_.get(j), j);
    __syncthreads();
    for (int j = thread_index(); j < n_; j += kThreads)
      rows_.set(j, owner_.get(sources_.get(j)) == j ? sources_.get(j) : -1);
    __syncthreads();
    list_movers();
    __syncthreads();
    const int movers = num_movers_.get(0);
    choose_rows(movers);
    copy_rows(movers);
    mix_shared(movers);
    const int64_t column = params_.prompt_length + step_;
    for (int j = thread_index(); j < n_; j += kThreads) {
      const int64_t row = first_ + rows_.get(j);
      params_.slots[first_ + j] = row;
      params_.append[row * params_.append_stride + column] = token_of(j);
      if (params_.history != nullptr) params_.history[row * params_.history_stride + column] = token_of(j);
      params_.token_ids[row] = token_of(j);
    }
    for (int r = thread_index(); r < n_; r += kThreads) {
      params_.source_rows[first_ + r] = first_ + origin_.get(r);
      params_.shared_out[first_ + r] = common_.get(r);
    }
  }

  // The beams without a row, best first.
  PYGEN_DEVICE void list_movers() const {
    if (thread_index() >= kWarp) return;
    int movers = 0;
    for (int first = 0; first < n_; first += kWarp) {
      const int j = first + thread_index();
      const bool moves = j < n_ && rows_.get(j) < 0;
      const unsigned mask = __ballot_sync(kAllLanes, moves);
      if (moves) movers_.set(movers + __popc(mask & ((1u << lane_index()) - 1)), j);
      movers += __popc(mask);
    }
    if (thread_index() == 0) num_movers_.set(0, movers);
  }

  PYGEN_DEVICE const int32_t* shared_of(int row) const { return params_.shared + (first_ + row) * n_; }

  PYGEN_DEVICE void choose_rows(int movers) const {
    const int at_once = staged_shared(n_) / n_;
    for (int first = 0; first < movers; first += at_once) {
      const int count = movers - first < at_once ? movers - first : at_once;
      for (int i = thread_index(); i < count * n_; i += kThreads) {
        const int mover = i / n_;
        staged_.set(i, shared_of(sources_.get(movers_.get(first + mover)))[i - mover * n_]);
      }
      __syncthreads();
      if (thread_index() < kWarp)
        for (int i = 0; i < count; ++i) choose_row(movers_.get(first + i), staged_.from(i * n_));
      __syncthreads();
    }
  }

  // One after the other, by one warp: what a beam takes is gone for the next.
  PYGEN_DEVICE void choose_row(int j, const Shared<int>& common) const {
    int best = -1, row = INT_MAX;
    for (int r = thread_index(); r < n_; r += kWarp) {
      if (owner_.get(r) != INT_MAX || common.get(r) <= best) continue;
      best = common.get(r);
      row = r;
    }
    const int max_common = __reduce_max_sync(kAllLanes, best);
    const int target = __reduce_min_sync(kAllLanes, best == max_common ? row : INT_MAX);
    __syncwarp();
    if (thread_index() == 0) {
      owner_.set(target, j);
      rows_.set(j, target);
      origin_.set(target, sources_.get(j));
      common_.set(target, max_common);
    }
    __syncwarp();
  }

  PYGEN_DEVICE int target_of(int mover) const { return rows_.get(movers_.get(mover)); }

  // No source is a target.
  PYGEN_DEVICE void copy_rows(int movers) const {
    for (int i = warp_index(); i < movers; i += kThreads / kWarp) {
      const int target = target_of(i);
      const int source = origin_.get(target);
      copy_columns(params_.append, params_.append_stride, source, target);
      if (params_.history != nullptr) copy_columns(params_.history, params_.history_stride, source, target);
    }
  }

  PYGEN_DEVICE void copy_columns(int64_t* table, int64_t stride, int source, int target) const {
    const int64_t* const from = table + (first_ + source) * stride + params_.prompt_length;
    int64_t* const to = table + (first_ + target) * stride + params_.prompt_length;
    for (int64_t i = common_.get(target) + lane_index(); i < step_; i += kWarp) to[i] = from[i];
  }

  // A row that moved has in common with others what its source had, and with its source everything.
  PYGEN_DEVICE void mix_shared(int movers) const {
    int32_t* const shared = params_.shared + first_ * n_;
    for (int i = thread_index(); i < movers * n_; i += kThreads) {
      const int mover = i / n_, r = i - mover * n_;
      const int target = target_of(mover);
      const int source = origin_.get(target), other = origin_.get(r);
      const int32_t common = r == target       ? 0
                             : other == source ? static_cast<int32_t>(step_)
                                               : shared[static_cast<int64_t>(source) * n_ + other];
      shared[static_cast<int64_t>(target) * n_ + r] = common;
      shared[static_cast<int64_t>(r) * n_ + target] = common;
    }
  }

  PYGEN_DEVICE void report(bool was_open, int finished) const {
    const bool stuck = !exists(0) && finished == 0;
    for (int r = thread_index(); r < n_; r += kThreads)
      params_.status[first_ + r] = reported_status(params_.status[first_ + r], was_open, stuck);
  }

  // All rows but the first, where prompts that come later find the step.
  PYGEN_DEVICE void count_step() const {
    if (params_.steps == nullptr) return;
    for (int r = thread_index(); r < n_; r += kThreads)
      if (first_ + r > 0) ++params_.steps[first_ + r];
  }

  // The last prompt to arrive writes how many are left.
  PYGEN_DEVICE void add_to_totals(BeamTotals* totals, bool open, bool goes_on, bool is_unfilled) const {
    if (open) atomicAdd(&totals->open, 1);
    if (goes_on) atomicAdd(&totals->not_ended, 1);
    if (is_unfilled) atomicAdd(&totals->not_finished, 1);
    __threadfence();
    if (atomicAdd(&totals->arrived, 1) != static_cast<int>(gridDim.x) - 1) return;
    __threadfence();
    const int all_open = atomicExch(&totals->open, 0);
    const bool all_ended = atomicExch(&totals->not_ended, 0) == 0;
    const bool all_finished = atomicExch(&totals->not_finished, 0) == 0;
    *params_.unfinished = search_is_over(params_, all_ended, all_finished) ? 0 : all_open;
    if (params_.steps != nullptr) ++params_.steps[0];
    totals->arrived = 0;
  }

  const BeamParams& params_;
  const int64_t step_;
  const bool is_last_;
  const int64_t prompt_, first_;
  const int n_, count_;
  const PromptCandidates& candidates_;
  const Ranking& ranking_;
  const Shared<int> ends_;
  const Shared<float> pool_scores_;
  const Shared<int64_t> pool_steps_, pool_tokens_;
  const Shared<int> pool_parents_, pool_finished_;
  const Shared<int> sources_;  // by new beam: the row of its parent
  const Shared<int> rows_;     // by new beam: its own row
  const Shared<int> owner_;    // by row: the beam that has it, or INT_MAX
  const Shared<int> origin_;   // by row: the row that its history comes from
  const Shared<int> common_;   // by row: how many generated positions it had in common with that
  const Shared<int> movers_;   // beams that take another row than their parent's
  const Shared<int> num_movers_;
  const Shared<int> staged_;
};

}  // namespace pygen::cuda
