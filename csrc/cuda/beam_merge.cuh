// The K best continuations of a prompt, from the sorted lists of its beams.
#pragma once

#include "common/beam_params.h"
#include "cuda/best_first.cuh"

namespace pygen::cuda {

// The K candidates of a prompt in shared memory, best first.
struct PromptCandidates {
  PYGEN_DEVICE PromptCandidates(SharedMemory& memory, int count)
      : ids(memory.take<int64_t>(count)), parents(memory.take<int>(count)), scores(memory.take<float>(count)) {}
  static size_t bytes(int64_t count) { return count * (8 + 4 + 4) + 3 * 16; }

  Shared<int64_t> ids;  // -1: none
  Shared<int> parents;  // ranks
  Shared<float> scores;
};

// Takes the lists level by level, of all beams at first and then of those whose next continuation may still be among
// the best, so that a beam that holds them all costs no more than many beams that share them. By one block.
class PromptMerge {
 public:
  PYGEN_DEVICE PromptMerge(const BeamParams& params, int64_t prompt, SharedMemory& memory)
      : n_(static_cast<int>(params.num_beams)),
        count_(static_cast<int>(params.num_candidates)),
        best_(memory, count_),
        draws_(params.do_sample),
        lists_(static_cast<const Candidate*>(params.best_of_row) + prompt * params.num_beams * params.num_candidates),
        sorts_draws_(params.sorts_draws),
        lengths_(memory.take<int>(n_)),
        beams_(memory.take<int>(n_)),
        next_beams_(memory.take<int>(n_)),
        counter_(memory.take<int>(1)),
        highest_(memory.take<uint32_t>(1)) {
    if (thread_index() == 0) highest_.set(0, 0);
    for (int beam = thread_index(); beam < n_; beam += kThreads) {
      lengths_.set(beam, static_cast<int>(params.count_of_row[prompt * params.num_beams + beam]));
      beams_.set(beam, beam);
    }
  }
  static size_t bytes(const BeamParams& params) {
    return BestOf::bytes(params.num_candidates) + params.num_beams * 3 * 4 + 5 * 16;
  }

  PYGEN_DEVICE const Ranking& ranking() const { return best_.ranking(); }

  PYGEN_DEVICE void run(const PromptCandidates& out) {
    __syncthreads();
    if (draws_) {
      for (int i = thread_index(); i < n_ * count_; i += kThreads)
        if (i % count_ < lengths_.get(i / count_)) highest_.max(0, ordered_key(lists_[i].score));
      __syncthreads();
      largest_ = value_of_key(highest_.get(0));
    }
    int level = 0, beams = n_, found = 0;
    Shared<int> going_on = beams_, next = next_beams_;
    while (beams > 0) {
      const int levels = beams < kThreads ? kThreads / beams : 1;
      for (int first = 0; first < levels * beams; first += kThreads) {
        const int i = first + thread_index();
        const int beam = i < levels * beams ? going_on.get(i % beams) : 0;
        const int index = level + i / beams;
        const uint64_t key[] = {i < levels * beams ? key_at(beam, index) : 0};
        const float score[] = {0.0f};
        best_.offer(key, beam * count_ + index, score);
      }
      level += levels;
      found = best_.keep_best();
      beams = find_who_goes_on(going_on, beams, level, next);
      const Shared<int> done = going_on;
      going_on = next;
      next = done;
    }
    for (int i = thread_index(); i < count_; i += kThreads) {
      const Candidate candidate =
          i < found ? lists_[best_.ranking().index(i)] : Candidate{0.0, -__builtin_huge_valf(), -1, -1};
      const int at = sorts_draws_ && i < found ? rank_by_score(i, candidate.score, found) : i;
      out.ids.set(at, candidate.token_id);
      out.parents.set(at, candidate.parent);
      out.scores.set(at, candidate.score);
    }
    __syncthreads();
  }

 private:
  // 0 where the list has ended.
  PYGEN_DEVICE uint64_t key_at(int beam, int index) const {
    if (index >= lengths_.get(beam)) return 0;
    const Candidate& candidate = lists_[beam * count_ + index];
    return ordered_key(draws_ ? candidate.value + (static_cast<double>(candidate.score) - largest_) : candidate.value);
  }

  // Among the candidates found, equal scores in the order of the draw.
  PYGEN_DEVICE int rank_by_score(int i, float score, int found) const {
    int rank = 0;
    for (int j = 0; j < found; ++j) {
      const float other = lists_[best_.ranking().index(j)].score;
      rank += other > score || (other == score && j < i);
    }
    return rank;
  }

  PYGEN_DEVICE int find_who_goes_on(Shared<int> beams, int count, int level, Shared<int> out) const {
    if (thread_index() == 0) counter_.set(0, 0);
    __syncthreads();
    for (int i = thread_index(); i < count; i += kThreads) {
      const int beam = beams.get(i);
      if (best_.may_enter(key_at(beam, level), beam * count_ + level)) out.set(counter_.add(0, 1), beam);
    }
    __syncthreads();
    return counter_.get(0);
  }

  const int n_, count_;
  BestOf best_;
  const bool draws_;
  float largest_ = 0.0f;  // of the scores
  const Candidate* const lists_;
  const bool sorts_draws_;
  const Shared<int> lengths_;
  const Shared<int> beams_, next_beams_;
  const Shared<int> counter_;
  const Shared<uint32_t> highest_;
};

}  // namespace pygen::cuda
