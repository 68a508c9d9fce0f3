// The K best continuations of a prompt, from the sorted lists of its beams.
#pragma once

#include "common/beam_params.h"
#include "cuda/best_first.cuh"

namespace pygen::cuda {

// The entry of `count_of_row`: how many candidates a beam has, and, of drawn ones, the key of their highest score.
PYGEN_DEVICE int64_t list_facts(int count, uint32_t highest_key) {
  return static_cast<int64_t>(static_cast<uint64_t>(highest_key) << 32 | static_cast<uint32_t>(count));
}
PYGEN_DEVICE int count_of_facts(int64_t facts) { return static_cast<int>(static_cast<uint32_t>(facts)); }
PYGEN_DEVICE uint32_t highest_key_of_facts(int64_t facts) {
  return static_cast<uint32_t>(static_cast<uint64_t>(facts) >> 32);
}

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
        facts_(params.count_of_row + prompt * params.num_beams),
        sorts_draws_(params.sorts_draws),
        lengths_(memory.take<int>(n_)),
        beams_(memory.take<int>(n_)),
        next_beams_(memory.take<int>(n_)),
        counter_(memory.take<int>(1)),
        highest_(memory.take<uint32_t>(kWarps)) {}
  static size_t bytes(const BeamParams& params) {
    return BestOf<false>::bytes(params.num_candidates) + params.num_beams * 3 * 4 + kWarps * 4 + 5 * 16;
  }

  PYGEN_DEVICE const Ranking<false>& ranking() const { return best_.ranking(); }

  PYGEN_DEVICE void run(const PromptCandidates& out) {
    begin();
    int level = 0, beams = n_, found = 0;
    Shared<int> going_on = beams_, next = next_beams_;
    while (beams > 0) {
      level += offer_levels(going_on, beams, level);
      if (thread_index() == 0) counter_.set(0, 0);
      found = best_.keep_best();
      list_who_goes_on(going_on, beams, level, next);
      __syncthreads();
      beams = counter_.get(0);
      const Shared<int> done = going_on;
      going_on = next;
      next = done;
    }
    give(out, found);
    __syncthreads();
  }

 private:
  PYGEN_DEVICE void begin() {
    uint32_t highest = 0;
#pragma unroll 1
    for (int beam = thread_index(); beam < n_; beam += kThreads) {
      const int64_t facts = facts_[beam];
      lengths_.set(beam, count_of_facts(facts));
      beams_.set(beam, beam);
      highest = Larger{}(highest, highest_key_of_facts(facts));
    }
    if (draws_) {
      highest = block_reduce(highest, Larger{}, highest_);
      if (highest != 0) largest_ = value_of_key(highest);
    }
    __syncthreads();
  }

  // Offers as many levels of the beams' lists as there are threads, at least one; returns how many.
  PYGEN_DEVICE int offer_levels(const Shared<int>& beams, int count, int level) {
    int log2_levels = 0;
    while (count << (log2_levels + 1) <= kThreads && level + (1 << log2_levels) < count_) ++log2_levels;
    const int levels = 1 << log2_levels;
#pragma unroll 1
    for (int first = 0; first < count << log2_levels; first += kThreads) {
      const int i = first + thread_index();
      const bool has_beam = i < count << log2_levels;
      const int beam = has_beam ? beams.get(i >> log2_levels) : 0;
      const int index = level + (i & (levels - 1));
      const uint64_t key[] = {has_beam ? key_at(beam, index) : 0};
      const float score[] = {0.0f};
      best_.offer(key, beam * count_ + index, score);
    }
    return levels;
  }

  // 0 where the list has ended.
  PYGEN_DEVICE uint64_t key_at(int beam, int index) const {
    if (index >= lengths_.get(beam)) return 0;
    const Candidate& candidate = lists_[beam * count_ + index];
    return ordered_key(draws_ ? candidate.value + (static_cast<double>(candidate.score) - largest_) : candidate.value);
  }

  PYGEN_DEVICE void list_who_goes_on(const Shared<int>& beams, int count, int level, const Shared<int>& out) const {
#pragma unroll 1
    for (int i = thread_index(); i < count; i += kThreads) {
      const int beam = beams.get(i);
      if (best_.may_enter(key_at(beam, level), beam * count_ + level)) out.set(counter_.add(0, 1), beam);
    }
  }

  PYGEN_DEVICE void give(const PromptCandidates& out, int found) const {
    const bool by_score = sorts_draws_ && draws_;
    if (by_score) take_scores(found);
#pragma unroll 1
    for (int i = thread_index(); i < count_; i += kThreads) {
      const Candidate candidate =
          i < found ? lists_[ranking().index(i)] : Candidate{0.0, -__builtin_huge_valf(), -1, -1};
      const int at = by_score && i < found ? rank_by_score(i, found) : i;
      out.ids.set(at, candidate.token_id);
      out.parents.set(at, candidate.parent);
      out.scores.set(at, candidate.score);
    }
  }

  // Replaces the keys of the ranking, whose order stays, by those of the scores.
  PYGEN_DEVICE void take_scores(int found) const {
#pragma unroll 1
    for (int i = thread_index(); i < found; i += kThreads) {
      RankedEntry entry = ranking().get(i);
      entry.key = ordered_key(static_cast<double>(lists_[entry.index].score));
      ranking().set(i, entry);
    }
    __syncthreads();
  }

  // Among the candidates found, equal scores in the order of the draw.
  PYGEN_DEVICE int rank_by_score(int i, int found) const {
    const uint64_t own = ranking().key(i);
    int rank = 0;
    for (int j = 0; j < found; ++j) {
      const uint64_t other = ranking().key(j);
      rank += other > own || (other == own && j < i);
    }
    return rank;
  }

  const int n_, count_;
  BestOf<false> best_;
  const bool draws_;
  float largest_ = 0.0f;  // of the scores
  const Candidate* const lists_;
  const int64_t* const facts_;
  const bool sorts_draws_;
  const Shared<int> lengths_;
  const Shared<int> beams_, next_beams_;
  const Shared<int> counter_;
  const Shared<uint32_t> highest_;
};

}  // namespace pygen::cuda
