// The best continuations of beams.
#pragma once

#include <algorithm>

#include "common/beam_params.h"
#include "cpu/race.h"
#include "cpu/scratch.h"

namespace pygen::cpu::PYGEN_ISA {

// Best first, ties to the better parent and then to the lower id.
struct BetterCandidate {
  bool operator()(const Candidate& a, const Candidate& b) const {
    if (a.value != b.value) return a.value > b.value;
    return a.parent != b.parent ? a.parent < b.parent : a.token_id < b.token_id;
  }
};

inline Buffer<Candidate>& candidate_scratch() {
  static thread_local Buffer<Candidate> buffer;
  return buffer;
}

// The best `capacity` continuations of one beam, offered in any order. It drops the worse half when twice as
// many are kept, so an offer costs a constant on average.
class TopCandidates {
 public:
  // `offset`: the beam's running score, which the race's bounds leave out.
  TopCandidates(int64_t capacity, int64_t parent, float offset)
      : kept_(candidate_scratch()), capacity_(capacity), parent_(static_cast<int32_t>(parent)), offset_(offset) {
    kept_.clear();
  }

  float origin = 0;  // as in Winner

  PYGEN_INLINE void offer(double value, int64_t token_id, float score) {
    if (score == -kInf) return;
    kept_.push({value, score, parent_, token_id});
    if (kept_.size() >= 2 * capacity_) shrink();
  }

  // At least `capacity` candidates have this value or more; -inf while fewer were offered.
  double reached() const { return reached_; }
  PYGEN_INLINE float bar() const {
    return reached_ < kHopeless ? -kInf : static_cast<float>(bar_below(reached_ + origin) - offset_);
  }

  // Writes the best, unordered, and returns how many.
  int64_t write(Candidate* out) {
    if (kept_.size() > capacity_) shrink();
    if (kept_.size() == capacity_) update_reached();
    std::copy(kept_.data(), kept_.data() + kept_.size(), out);
    return kept_.size();
  }

 private:
  void shrink() {
    std::nth_element(kept_.data(), kept_.data() + capacity_ - 1, kept_.data() + kept_.size(), BetterCandidate{});
    kept_.truncate(capacity_);
    reached_ = kept_[capacity_ - 1].value;
  }
  void update_reached() {
    reached_ = kept_[0].value;
    for (int64_t i = 1; i < kept_.size(); ++i) reached_ = std::min(reached_, kept_[i].value);
  }

  Buffer<Candidate>& kept_;
  const int64_t capacity_;
  const int32_t parent_;
  const double offset_;
  double reached_ = -std::numeric_limits<double>::infinity();
};

}  // namespace pygen::cpu::PYGEN_ISA
