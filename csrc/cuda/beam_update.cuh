// Updates the beams of a prompt with a step's candidates, by a block: finished hypotheses, running beams and their
// rows. csrc/cpu/beam_update.h does the same with loops.
#pragma once

#include "cuda/beam_merge.cuh"
#include "cuda/beam_rows.cuh"

namespace pygen::cuda {

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
                            const Ranking<false>& ranking, SharedMemory& memory)
      : params_(params),
        step_(step_of(params)),
        prompt_(prompt),
        first_(prompt * params.num_beams),
        n_(static_cast<int>(params.num_beams)),
        count_(static_cast<int>(params.num_candidates)),
        candidates_(candidates),
        ranking_(ranking),
        rows_(params, prompt, memory),
        ends_(memory.take<int>(count_)),
        pool_scores_(memory.take<float>(n_)),
        pool_steps_(memory.take<int64_t>(n_)),
        pool_tokens_(memory.take<int64_t>(n_)),
        pool_parents_(memory.take<int>(n_)),
        pool_finished_(memory.take<int>(n_)),
        num_finished_(memory.take<int>(1)) {}
  static size_t bytes(const BeamParams& params) {
    return BeamRows::bytes(params) + params.num_candidates * 4 + params.num_beams * (4 + 8 + 8 + 4 + 4) + 7 * 16;
  }

  // Reads the state, which no kernel in front writes. A barrier has to follow.
  PYGEN_DEVICE void prepare() const {
    rows_.prepare(step_);
#pragma unroll 1
    for (int i = thread_index(); i < n_; i += kThreads) {
      const int64_t at = first_ + i;
      pool_scores_.set(i, params_.finished_scores[at]);
      pool_steps_.set(i, params_.finished_steps[at]);
      pool_tokens_.set(i, params_.finished_tokens[at]);
      pool_parents_.set(i, params_.finished_parents[at]);
      pool_finished_.set(i, params_.finished[at]);
    }
    if (thread_index() == 0) num_finished_.set(0, 0);
  }

  // After a barrier.
  PYGEN_DEVICE void run(BeamTotals* totals) const {
    const bool was_open = params_.open[prompt_] != 0;
    const bool is_full = params_.stops_when_full && is_pool_full();
    // Hypotheses and running beams are ranked at once where warps sort both, each in a group.
    const int pool = n_ + count_;
    const bool at_once = pool <= 2 * kKept && count_ <= kKept;
    const int group = pool <= kWarp ? kWarp : pool <= kKept ? kKept : 2 * kKept;
    const int running = at_once ? group : 0;
    const bool ends = find_ends();
    rank_finished(is_full, was_open);
    if (at_once) {
#pragma unroll 1
      for (int i = pool + thread_index(); i < group; i += kThreads) ranking_.set(i, RankedEntry());
      rank_running(running);
    }
    const bool all_ended = __syncthreads_and(ends) != 0;
    if (at_once) {
      ranking_.sort_groups(running + count_, group);
    } else {
      ranking_.sort(pool, n_);
      write_finished(thread_index(), kThreads);
      __syncthreads();
      rank_running(running);
      __syncthreads();
      ranking_.sort(count_, n_);
    }
    if (warp_index() == 0) {
      rows_.choose(step_, [&](int j) { return parent_of(j, running); });
    } else if (at_once) {
      write_finished(thread_index() - kWarp, kThreads - kWarp);
    }
    __syncthreads();
    write_running(running);
    copy_rows();
    rows_.mix_shared(step_);
    finish(totals, was_open, all_ended, running);
  }

 private:
  static constexpr int kKept = Ranking<false>::kMaxKept;

  PYGEN_DEVICE bool exists(int i) const { return candidates_.ids.get(i) >= 0; }

  PYGEN_DEVICE void rank(int to, int i, float score) const {
    RankedEntry entry;
    entry.key = ordered_key(static_cast<double>(score));
    entry.index = static_cast<uint32_t>(i);
    ranking_.set(to, entry);
  }

  PYGEN_DEVICE bool is_pool_full() const {
    bool all = true;
#pragma unroll 1
    for (int i = thread_index(); i < n_; i += kThreads) all &= pool_finished_.get(i) != 0;
    return __syncthreads_and(all) != 0;
  }

  // Whether every candidate of the thread ends.
  PYGEN_DEVICE bool find_ends() const {
    const bool is_last = is_last_step(params_, step_);
    bool all = true;
#pragma unroll 1
    for (int i = thread_index(); i < count_; i += kThreads) {
      const bool criteria = params_.ends[prompt_ * count_ + i] != 0;
      const bool ends = candidate_ends(params_, candidates_.ids.get(i), is_last, criteria);
      ends_.set(i, ends);
      all &= ends;
    }
    return all;
  }

  // Of the finished hypotheses, and behind them the candidates.
  PYGEN_DEVICE void rank_finished(bool is_full, bool was_open) const {
#pragma unroll 1
    for (int i = thread_index(); i < n_; i += kThreads) rank(i, i, pool_scores_.get(i));
#pragma unroll 1
    for (int i = thread_index(); i < count_; i += kThreads)
      rank(n_ + i, n_ + i, score_if_finished(i, is_full, was_open));
  }
  PYGEN_DEVICE bool joins(int i) const { return i < n_ && exists(i) && ends_.get(i) != 0; }
  PYGEN_DEVICE float score_if_finished(int i, bool is_full, bool was_open) const {
    return finished_score(candidates_.scores.get(i), params_.normalisers[step_], is_full, !was_open, joins(i));
  }
  PYGEN_DEVICE void rank_running(int first) const {
#pragma unroll 1
    for (int i = thread_index(); i < count_; i += kThreads)
      rank(first + i, i, running_score(candidates_.scores.get(i), ends_.get(i) != 0));
  }

  // By threads `thread` of `threads`, whole warps.
  PYGEN_DEVICE void write_finished(int thread, int threads) const {
    int finished = 0;
#pragma unroll 1
    for (int i = thread; i < n_; i += threads) {
      const int index = ranking_.index(i);
      finished += index < n_ ? keep(i, index) : join(i, index - n_);
    }
    finished = warp_reduce(finished, Add{});
    if (lane_index() == 0 && finished > 0) num_finished_.add(0, finished);
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
  PYGEN_DEVICE bool join(int to, int from) const {
    const int64_t at = first_ + to;
    params_.finished_scores[at] = ranking_.score(to);
    params_.finished_steps[at] = step_;
    params_.finished_tokens[at] = candidates_.ids.get(from);
    params_.finished_parents[at] = static_cast<int32_t>(first_ + candidates_.parents.get(from));
    params_.finished[at] = joins(from);
    return joins(from);
  }

  // From here on, `running`: where the ranking of the running beams begins.
  PYGEN_DEVICE int parent_of(int j, int running) const {
    const int i = ranking_.index(running + j);
    return exists(i) ? candidates_.parents.get(i) : j;
  }

  PYGEN_DEVICE void write_running(int running) const {
    const int64_t at_step = step_ * params_.shaping.rows + first_;
    const int64_t column = params_.prompt_length + step_;
#pragma unroll 1
    for (int j = thread_index(); j < n_; j += kThreads) {
      const int i = ranking_.index(running + j);
      const int64_t token = exists(i) ? candidates_.ids.get(i) : params_.pad_token_id;
      const int64_t row = first_ + rows_.row(j);
      params_.running_scores[first_ + j] = ranking_.score(running + j);
      params_.step_tokens[at_step + j] = token;
      params_.step_parents[at_step + j] = static_cast<int32_t>(first_ + parent_of(j, running));
      params_.slots[first_ + j] = row;
      params_.append[row * params_.append_stride + column] = token;
      if (params_.history != nullptr) params_.history[row * params_.history_stride + column] = token;
      params_.token_ids[row] = token;
    }
#pragma unroll 1
    for (int r = thread_index(); r < n_; r += kThreads) {
      params_.source_rows[first_ + r] = first_ + rows_.origin(r);
      params_.shared_out[first_ + r] = rows_.common(r);
    }
  }

  // No source is a target.
  PYGEN_DEVICE void copy_rows() const {
#pragma unroll 1
    for (int i = warp_index(); i < rows_.movers(); i += kWarps) {
      const int target = rows_.target(i);
      copy_columns(params_.append, params_.append_stride, target);
      if (params_.history != nullptr) copy_columns(params_.history, params_.history_stride, target);
    }
  }
  PYGEN_DEVICE void copy_columns(int64_t* table, int64_t stride, int target) const {
    const int64_t* const from = table + (first_ + rows_.origin(target)) * stride + params_.prompt_length;
    int64_t* const to = table + (first_ + target) * stride + params_.prompt_length;
    for (int64_t i = rows_.common(target) + lane_index(); i < step_; i += kWarp) to[i] = from[i];
  }

  PYGEN_DEVICE void finish(BeamTotals* totals, bool was_open, bool all_ended, int running) const {
    const int finished = num_finished_.get(0);
    const bool stuck = !exists(0) && finished == 0;
#pragma unroll 1
    for (int r = thread_index(); r < n_; r += kThreads) {
      const int64_t row = first_ + r;
      params_.status[row] = reported_status(params_.status[row], was_open, stuck);
      // Of row 0 the last prompt to arrive counts the step, so that all prompts find the same.
      if (params_.steps != nullptr && row > 0) ++params_.steps[row];
    }
    if (thread_index() != 0) return;
    // At the length at which the best running beam is compared.
    const float attainable = ranking_.score(running) / params_.normalisers[params_.max_new_tokens + step_];
    const bool open =
        was_open && stays_open(attainable, params_.finished_scores[first_ + n_ - 1], finished > 0, finished == n_);
    params_.open[prompt_] = open;
    add_to_totals(totals, open, !all_ended, finished < n_);
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
  const int64_t prompt_, first_;
  const int n_, count_;
  const PromptCandidates& candidates_;
  const Ranking<false>& ranking_;
  const BeamRows rows_;
  const Shared<int> ends_;
  const Shared<float> pool_scores_;
  const Shared<int64_t> pool_steps_, pool_tokens_;
  const Shared<int> pool_parents_, pool_finished_;
  const Shared<int> num_finished_;
};

}  // namespace pygen::cuda
