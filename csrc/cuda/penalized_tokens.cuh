// Tokens whose score differs from their logit: seen in the history, banned or suppressed. They are few. One bit per 8
// positions shows the scan where it has to read the table.
//
// The table of a block holds the tokens of its slice. It is a hash table with open addressing in shared memory. Where
// the history is long, it is one word per token in the workspace instead, which `release` zeroes again.
#pragma once

#include "common/penalties.h"
#include "cuda/row_layout.cuh"

namespace pygen::cuda {

// A word per token: how often it was generated, and two flags.
constexpr uint32_t kSeen = 1u << 30;
constexpr uint32_t kBanned = 1u << 31;
constexpr uint32_t kCountMask = kSeen - 1;

template <DType kDType>
class PenalizedTokens {
 public:
  // All threads of a block. `slots`: of the table, a power of two; 0: none is needed. `dense`: the row's words in the
  // workspace, or null.
  PYGEN_DEVICE PenalizedTokens(const ShapingParams& params, int64_t row, const RowLayout<kDType>& layout, int slots,
                               int slice_positions, uint32_t* dense, SharedMemory& shared)
      : slots_(slots), dense_(dense), origin_(layout.first_vector() * LogitVector<kDType>::kCount - layout.padding()) {
    if (!any()) return;
    bits_ = shared.take<uint32_t>(slice_positions / 256 + 1);
    tokens_ = shared.take<uint32_t>(slots);
    facts_ = shared.take<uint32_t>(slots);
    for (int i = thread_index(); i < slice_positions / 256 + 1; i += kThreads) bits_.set(i, 0);
    for (int i = thread_index(); i < slots; i += kThreads) {
      tokens_.set(i, 0);
      facts_.set(i, 0);
    }
    repetition_ = knob_at(params.repetition_penalty, row);
    presence_ = knob_at(params.presence_penalty, row);
    frequency_ = knob_at(params.frequency_penalty, row);
    __syncthreads();
    collect(params, row, layout);
    __syncthreads();
  }

  PYGEN_DEVICE bool any() const { return slots_ > 0 || dense_ != nullptr; }

  // Whether one of the 8 tokens around `token`, which is in the slice, may be in the table.
  PYGEN_DEVICE bool near(int token) const {
    const int group = (token - origin_) / 8;
    return (bits_.get(group / 32) >> (group % 32) & 1u) != 0;
  }

  PYGEN_DEVICE float apply(int token, float score) const {
    const uint32_t facts = find(token);
    if (facts == 0) return score;
    if ((facts & kBanned) != 0) return -kInfinity;
    if ((facts & kSeen) != 0 && repetition_ != 1.0f) score = repetition_penalized(score, repetition_);
    const uint32_t count = facts & kCountMask;
    return count > 0 ? count_penalized(score, count, presence_, frequency_) : score;
  }

  // Zeroes the workspace. All threads, once no block of the row reads the table any more.
  PYGEN_DEVICE void release(const ShapingParams& params, int64_t row, const RowLayout<kDType>& layout) const {
    if (dense_ == nullptr) return;
    each_id(params, row, layout, [&](int token, int64_t) { dense_[token] = 0; });
  }

 private:
  // Calls visit(token, position in the history) for every occurrence of a token of the slice; position -1: suppressed.
  template <typename Visit>
  PYGEN_DEVICE void each_id(const ShapingParams& params, int64_t row, const RowLayout<kDType>& layout,
                            const Visit& visit) const {
    const auto inside = [&](int64_t id) {
      return id >= 0 && id < layout.vocab_size() && layout.in_slice(static_cast<int>(id));
    };
    if (params.input_ids != nullptr) {
      const int64_t* history = params.input_ids + row * params.input_ids_stride;
      const int64_t length = history_length_of(params, row);
      for (int64_t i = thread_index(); i < length; i += kThreads)
        if (inside(history[i])) visit(static_cast<int>(history[i]), i);
    }
    if (params.suppress != nullptr) {
      const int64_t* suppressed = params.suppress + row * params.suppress_stride;
      for (int64_t i = thread_index(); i < params.suppress_count; i += kThreads)
        if (inside(suppressed[i])) visit(static_cast<int>(suppressed[i]), -1);
    }
  }

  PYGEN_DEVICE void collect(const ShapingParams& params, int64_t row, const RowLayout<kDType>& layout) const {
    const int64_t ngram = knob_at(params.no_repeat_ngram_size, row);
    const int64_t prompt_length = knob_at(params.prompt_lengths, row);
    const bool penalised = repetition_ != 1.0f || presence_ != 0.0f || frequency_ != 0.0f;
    each_id(params, row, layout, [&](int token, int64_t pos) {
      uint32_t facts = pos < 0 ? kBanned : 0u;
      if (pos >= 0 && penalised) facts = kSeen | static_cast<uint32_t>(pos >= prompt_length);
      if (pos >= 0 && ngram > 0 && completes_ngram(params, row, ngram, pos)) facts |= kBanned;
      if (facts != 0) note(token, facts);
    });
  }

  // Whether the n - 1 ids in front of position `pos` of the history are also its last ones.
  PYGEN_DEVICE static bool completes_ngram(const ShapingParams& params, int64_t row, int64_t n, int64_t pos) {
    if (pos < n - 1) return false;
    const int64_t* history = params.input_ids + row * params.input_ids_stride;
    const int64_t* suffix = history + history_length_of(params, row) - (n - 1);
    for (int64_t j = 0; j < n - 1; ++j) {
      const int64_t id = suffix[j];
      if (history[pos - (n - 1) + j] != id || id < 0 || id >= params.vocab_size) return false;
    }
    return true;
  }

  PYGEN_DEVICE int slot_of(int token) const {
    return static_cast<int>((static_cast<uint32_t>(token) * 2654435769u) >> 7) & (slots_ - 1);
  }

  PYGEN_DEVICE void note(int token, uint32_t facts) const {
    const int group = (token - origin_) / 8;
    bits_.bit_or(group / 32, 1u << (group % 32));
    if (dense_ != nullptr) {
      atomicOr(dense_ + token, facts & ~kCountMask);
      if ((facts & kCountMask) != 0) atomicAdd(dense_ + token, facts & kCountMask);
      return;
    }
    const uint32_t name = static_cast<uint32_t>(token) + 1;
    int slot = slot_of(token);
    for (;; slot = (slot + 1) & (slots_ - 1)) {
      const uint32_t there = tokens_.compare_and_swap(slot, 0u, name);
      if (there == 0 || there == name) break;
    }
    facts_.bit_or(slot, facts & ~kCountMask);
    if ((facts & kCountMask) != 0) facts_.add(slot, facts & kCountMask);
  }

  PYGEN_DEVICE uint32_t find(int token) const {
    if (dense_ != nullptr) return dense_[token];
    const uint32_t name = static_cast<uint32_t>(token) + 1;
    for (int slot = slot_of(token);; slot = (slot + 1) & (slots_ - 1)) {
      const uint32_t there = tokens_.get(slot);
      if (there == name) return facts_.get(slot);
      if (there == 0) return 0;
    }
  }

  int slots_;
  uint32_t* dense_;
  int origin_;  // token of the slice's first position; negative in the padding
  Shared<uint32_t> bits_, tokens_, facts_;
  float repetition_ = 1.0f, presence_ = 0.0f, frequency_ = 0.0f;
};

}  // namespace pygen::cuda
