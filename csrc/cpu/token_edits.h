// The tokens of one row whose score differs from their logit: penalised, banned and suppressed ones. They are few, so a
// list holds them, linked by the blocks of 64 tokens that they belong to.
#pragma once

#include <limits>

#include "common/penalties.h"
#include "common/sample_params.h"
#include "cpu/scratch.h"

namespace pygen::cpu::PYGEN_ISA {

constexpr int64_t kBlock = 64;
constexpr float kInf = std::numeric_limits<float>::infinity();

class TokenEdits {
 public:
  TokenEdits(const ShapingParams& params, int64_t row, int64_t blocks, Scratch& scratch)
      : params_(params), row_(row), vocab_size_(params.vocab_size), scratch_(scratch) {
    int32_t* first = scratch_.first_edit.reserve(blocks);
    for (; scratch_.first_edit_size < blocks; ++scratch_.first_edit_size) first[scratch_.first_edit_size] = -1;
  }
  ~TokenEdits() {
    for (int64_t i = 0; i < size(); ++i) scratch_.first_edit[scratch_.edits[i].token_id / kBlock] = -1;
    scratch_.edits.clear();
  }
  TokenEdits(const TokenEdits&) = delete;
  TokenEdits& operator=(const TokenEdits&) = delete;

  // Not part of the constructor: where it runs out of memory, the destructor still has to clear the list.
  void collect() {
    const int64_t ngram_size = knob_at(params_.no_repeat_ngram_size, row_);
    const bool penalised = repetition() != 1.0f || presence() != 0.0f || frequency() != 0.0f;
    if (params_.input_ids != nullptr && (penalised || ngram_size > 0)) {
      const int64_t* history = params_.input_ids + row_ * params_.input_ids_stride;
      if (penalised) collect_history(history);
      if (ngram_size > 0) ban_repeated_ngrams(history, ngram_size);
    }
    if (params_.suppress != nullptr) {
      const int64_t* suppressed = params_.suppress + row_ * params_.suppress_stride;
      for (int64_t i = 0; i < params_.suppress_count; ++i)
        if (in_vocabulary(suppressed[i])) edit_of(suppressed[i]).banned = true;
    }
  }

  int64_t size() const { return scratch_.edits.size(); }
  const TokenEdit& operator[](int64_t i) const { return scratch_.edits[i]; }
  bool in_block(int64_t block) const { return scratch_.first_edit[block] >= 0; }

  template <typename Visit>
  void for_each_in(int64_t block, const Visit& visit) const {
    for (int32_t i = scratch_.first_edit[block]; i >= 0; i = scratch_.edits[i].next) visit(scratch_.edits[i]);
  }

  // Computes the scores. base_score(token_id): logit and bias.
  template <typename BaseScore>
  void score(const BaseScore& base_score) {
    const float repetition_penalty = repetition(), presence_penalty = presence(), frequency_penalty = frequency();
    for (int64_t i = 0; i < size(); ++i) {
      TokenEdit& edit = scratch_.edits[i];
      edit.score = base_score(edit.token_id);
      if (edit.seen && repetition_penalty != 1.0f) edit.score = repetition_penalized(edit.score, repetition_penalty);
      if (edit.count > 0) edit.score = count_penalized(edit.score, edit.count, presence_penalty, frequency_penalty);
      if (edit.banned) edit.score = -kInf;
    }
  }

 private:
  float repetition() const { return knob_at(params_.repetition_penalty, row_); }
  float presence() const { return knob_at(params_.presence_penalty, row_); }
  float frequency() const { return knob_at(params_.frequency_penalty, row_); }

  bool in_vocabulary(int64_t token_id) const { return token_id >= 0 && token_id < vocab_size_; }

  // The edit of a token, added to the list where the token has none yet.
  TokenEdit& edit_of(int64_t token_id) {
    int32_t& first = scratch_.first_edit[token_id / kBlock];
    for (int32_t i = first; i >= 0; i = scratch_.edits[i].next)
      if (scratch_.edits[i].token_id == token_id) return scratch_.edits[i];
    scratch_.edits.push({static_cast<int32_t>(token_id), first, 0.0f, false, false, 0});
    first = static_cast<int32_t>(size() - 1);
    return scratch_.edits[first];
  }

  void collect_history(const int64_t* history) {
    const int64_t prompt_length = knob_at(params_.prompt_lengths, row_);
    const int64_t length = history_length_of(params_, row_);
    for (int64_t i = 0; i < length; ++i) {
      if (!in_vocabulary(history[i])) continue;
      TokenEdit& edit = edit_of(history[i]);
      edit.seen = true;
      edit.count += i >= prompt_length;
    }
  }

  // Bans every token that would complete an n-gram which the history already holds.
  void ban_repeated_ngrams(const int64_t* history, int64_t n) {
    const int64_t length = history_length_of(params_, row_);
    if (length < n) return;
    const int64_t* suffix = history + length - (n - 1);
    for (int64_t i = n - 1; i < length; ++i) {
      if (!in_vocabulary(history[i])) continue;
      bool same = true;
      for (int64_t j = 0; j < n - 1 && same; ++j)
        same = history[i - (n - 1) + j] == suffix[j] && in_vocabulary(suffix[j]);
      if (same) edit_of(history[i]).banned = true;
    }
  }

  const ShapingParams& params_;
  const int64_t row_;
  const int64_t vocab_size_;
  Scratch& scratch_;
};

}  // namespace pygen::cpu::PYGEN_ISA
