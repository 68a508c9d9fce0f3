// One row's scores before temperature: logits + bias, penalties, bans, suppression and token_bitmask, in blocks of 64
// tokens.
//
// Penalties and bans touch few tokens (token_edits.h). A block without such a token is read in place, and no row is
// copied. One pass over memory makes the maxima of the blocks, which every later step uses. For beams the scores start
// as log-softmax(logits), which the same pass prepares.
#pragma once

#include <cmath>

#include "cpu/logits.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/token_edits.h"
#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

class RowScores {
 public:
  RowScores(const ShapingParams& params, int64_t row, Scratch& scratch)
      : params_(params),
        vocab_size_(params.vocab_size),
        blocks_((params.vocab_size + kBlock - 1) / kBlock),
        element_size_(params.dtype == DType::kFloat32 ? 4 : 2),
        logits_(static_cast<const char*>(params.logits) + row * params.logits_stride * element_size_),
        bias_(params.bias != nullptr ? params.bias + row * params.bias_stride : nullptr),
        token_bitmask_(params.token_bitmask != nullptr ? params.token_bitmask + row * params.token_bitmask_stride
                                                       : nullptr),
        scratch_(scratch),
        edits_(params, row, blocks_, scratch) {
    scratch_.block_max.reserve(blocks_ + kLanes);
    edits_.collect();
  }

  RowScores(const RowScores&) = delete;
  RowScores& operator=(const RowScores&) = delete;

  int64_t blocks() const { return blocks_; }
  int64_t vocab_size() const { return vocab_size_; }
  const float* block_max() const { return scratch_.block_max.data(); }
  float max_score() const { return max_score_; }
  RowStatus status() const { return status_; }

  int64_t block_length(int64_t block) const {
    const int64_t rest = vocab_size_ - block * kBlock;
    return rest < kBlock ? rest : kBlock;
  }

  // All scores as an array, if they are the logits themselves; else null.
  const float* in_place() const {
    return logits_are_scores() && !has_edits() ? reinterpret_cast<const float*>(logits_) : nullptr;
  }

  // The 64 scores of a block, -inf past the vocabulary: in place, or else written to `buffer`.
  PYGEN_INLINE const float* block(int64_t block, float* buffer) const {
    if (logits_are_scores() && !edits_.in_block(block) && block_length(block) == kBlock)
      return reinterpret_cast<const float*>(logits_) + block * kBlock;
    return compose_block(block, buffer, true);
  }

  // The only pass over the whole row: the maxima of the blocks and of the row, and its status.
  void scan(int threads) {
    // Edits are scattered over the row: in a plain row they wait until the pass has brought it into the cache.
    const bool plain = bias_ == nullptr && token_bitmask_ == nullptr;
    if (!plain) score_edits();
    const Bits nan = pass(threads, [&](int64_t b, Bits& seen) { scan_block(b, seen); });
    if (plain) {
      score_edits();
      if (nan == 0) correct_maxima();
    }
    conclude(nan);
  }

  // Instead of `scan`, in a row that is its logits: also ln of the sum of e^((score - max_score) * scale).
  double scan_log_sum(int threads, float scale = 1.0f) {
    conclude(sum_blocks(threads, scale));
    return status_ == kOk ? log_of_sum(scale) : 0.0;
  }

  // Instead of `scan`: from here on the scores are log-softmax(logits) before bias, penalties and bans.
  void scan_log_softmax(int threads) {
    Bits nan = sum_blocks(threads, 1.0f);
    if (nan != 0) {
      status_ = kNan;
      return;
    }
    conclude(0);
    if (status_ != kOk) return;

    max_logit_ = max_score_;
    log_sum_ = static_cast<float>(log_of_sum(1.0f));
    log_softmax_ = true;
    score_edits();
    if (bias_ == nullptr && token_bitmask_ == nullptr) {
      float* maxima = scratch_.block_max.data();
      for (int64_t b = 0; b < blocks_; ++b) maxima[b] = log_probability(maxima[b]);
      correct_maxima();
    } else {
      for (int64_t b = 0; b < blocks_; ++b) scan_block(b, nan);
    }
    conclude(nan);
  }

  bool has_edits() const { return edits_.size() > 0; }

  // One block of `scan`, for callers with a loop over all blocks: returns the maximum, and sets `nan` where it sees
  // one. The row must have no edits, and `conclude` has to follow.
  PYGEN_INLINE float scan_block(int64_t b, Bits& nan) {
    F32 v[4];
    float buffer[kBlock];
    const bool plain = bias_ == nullptr && token_bitmask_ == nullptr;
    if (plain && block_length(b) == kBlock) {
      load_block(b, v);
    } else {
      compose_block(b, buffer, !plain);
      for (int i = 0; i < 4; ++i) v[i] = load(buffer + i * kLanes);
    }
    nan |= unordered(v[0], v[1]) | unordered(v[2], v[3]);
    const float largest = reduce_max(max(max(v[0], v[1]), max(v[2], v[3])));
    scratch_.block_max[b] = largest;
    return largest;
  }

  void conclude(Bits nan) {
    const bool has_nan = nan != 0 && recompute_maxima_without_nan();
    const float* maxima = scratch_.block_max.data();
    max_score_ = -kInf;
    for (int64_t b = 0; b < blocks_; ++b) max_score_ = maxima[b] > max_score_ ? maxima[b] : max_score_;
    status_ = has_nan ? kNan : max_score_ == kInf ? kPosInf : max_score_ == -kInf ? kAllMasked : kOk;
  }

  // The lowest id with the largest score; NaN does not count.
  int64_t argmax() const {
    float buffer[kBlock];
    const float* maxima = scratch_.block_max.data();
    for (int64_t b = 0; b < blocks_; ++b) {
      if (!(maxima[b] == max_score_)) continue;
      const float* scores = block(b, buffer);
      for (int64_t i = 0; i < block_length(b); ++i)
        if (scores[i] == max_score_) return b * kBlock + i;
    }
    return 0;
  }

  float logit(int64_t token_id) const {
    float logit;
    const char* at = logits_ + token_id * element_size_;
    if (params_.dtype == DType::kFloat32) {
      std::memcpy(&logit, at, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, at, 2);
      if (params_.dtype == DType::kFloat16) {
        logit = half_to_float(half);
      } else {
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        std::memcpy(&logit, &bits, 4);
      }
    }
    return logit;
  }

 private:
  // Whether a block without edits can be read in place.
  bool logits_are_scores() const {
    return params_.dtype == DType::kFloat32 && bias_ == nullptr && token_bitmask_ == nullptr && !log_softmax_;
  }

  // Calls per_block(block, nan) for all blocks, from several parts of the row in turn.
  template <typename PerBlock>
  Bits pass(int threads, const PerBlock& per_block) {
    Bits nan_of_part[kMaxParts] = {};
    const int parts = threads < kMaxParts ? threads : kMaxParts;
    parallel_parts(blocks_, parts, [&](int64_t begin, int64_t end, int part) {
      Bits nan = 0;
      const int64_t stretch = (end - begin) / kStreams;
      for (int64_t i = 0; i < stretch; ++i)
        for (int64_t stream = 0; stream < kStreams; ++stream) per_block(begin + stream * stretch + i, nan);
      for (int64_t b = begin + kStreams * stretch; b < end; ++b) per_block(b, nan);
      nan_of_part[part] = nan;
    });
    Bits nan = 0;
    for (int part = 0; part < parts; ++part) nan |= nan_of_part[part];
    return nan;
  }

  PYGEN_INLINE float log_probability(float logit) const { return (logit - max_logit_) - log_sum_; }

  // The 64 logits of a whole block.
  PYGEN_INLINE void load_block(int64_t b, F32 v[4]) const {
    const int64_t at = b * kBlock;
    switch (params_.dtype) {
      case DType::kFloat32:
        for (int i = 0; i < 4; ++i) v[i] = load_logits<DType::kFloat32>(logits_, at + i * kLanes);
        break;
      case DType::kFloat16:
        for (int i = 0; i < 4; ++i) v[i] = load_logits<DType::kFloat16>(logits_, at + i * kLanes);
        break;
      case DType::kBFloat16:
        for (int i = 0; i < 4; ++i) v[i] = load_logits<DType::kBFloat16>(logits_, at + i * kLanes);
        break;
    }
  }

  // Makes the maximum of every block and the sum of e^((logit - that maximum) * scale). Sums per block do not depend on
  // how threads share the row.
  Bits sum_blocks(int threads, float scale) {
    scratch_.block_sum.reserve(blocks_ + kLanes);
    const F32 factor = broadcast(scale);
    return pass(threads, [&](int64_t b, Bits& seen) { sum_block(b, factor, seen); });
  }

  PYGEN_INLINE void sum_block(int64_t b, const F32& scale, Bits& nan) {
    F32 v[4];
    if (block_length(b) == kBlock) {
      load_block(b, v);
    } else {
      float buffer[kBlock];
      for (int64_t i = 0; i < kBlock; ++i) buffer[i] = i < block_length(b) ? logit(b * kBlock + i) : -kInf;
      for (int i = 0; i < 4; ++i) v[i] = load(buffer + i * kLanes);
    }
    nan |= unordered(v[0], v[1]) | unordered(v[2], v[3]);
    const float largest = reduce_max(max(max(v[0], v[1]), max(v[2], v[3])));
    scratch_.block_max[b] = largest;
    // In a block of -inf only, the differences would be NaN.
    const F32 from = broadcast(largest == -kInf ? 0.0f : largest);
    F32 sum = exp_nonpositive((v[0] - from) * scale);
    for (int i = 1; i < 4; ++i) sum = sum + exp_nonpositive((v[i] - from) * scale);
    scratch_.block_sum[b] = reduce_add(sum);
  }

  // ln of the sum of e^((logit - max_score) * scale).
  double log_of_sum(float scale) const {
    const float* maxima = scratch_.block_max.data();
    const float* sums = scratch_.block_sum.data();
    const F32 largest = broadcast(max_score_), factor = broadcast(scale);
    Sum total;
    int64_t b = 0;
    for (; b + kLanes <= blocks_; b += kLanes)
      total.add(load(sums + b) * exp_nonpositive((load(maxima + b) - largest) * factor));
    float last_sums[kLanes] = {}, last_maxima[kLanes] = {};
    for (int64_t i = 0; b + i < blocks_; ++i) {
      last_sums[i] = sums[b + i];
      last_maxima[i] = (maxima[b + i] - max_score_) * scale;
    }
    total.add(load(last_sums) * exp_nonpositive(load(last_maxima)));
    return std::log(total.total());
  }

  // Before penalties and bans.
  float base_score(int64_t token_id) const {
    float score = logit(token_id);
    if (log_softmax_) score = log_probability(score);
    return bias_ != nullptr ? score + bias_[token_id] : score;
  }

  void score_edits() {
    edits_.score([this](int64_t token_id) { return base_score(token_id); });
  }

  // Writes a block to `buffer`; lanes past the vocabulary are -inf.
  const float* compose_block(int64_t block, float* buffer, bool with_edits) const {
    const int64_t begin = block * kBlock;
    const int64_t length = block_length(block);
    if (length == kBlock) {
      F32 v[4];
      load_block(block, v);
      for (int i = 0; i < 4; ++i) {
        if (log_softmax_) v[i] = (v[i] - broadcast(max_logit_)) - broadcast(log_sum_);
        if (bias_ != nullptr) v[i] = v[i] + load(bias_ + begin + i * kLanes);
        store(buffer + i * kLanes, v[i]);
      }
    } else {
      for (int64_t i = 0; i < kBlock; ++i) buffer[i] = i < length ? base_score(begin + i) : -kInf;
    }
    if (with_edits)
      edits_.for_each_in(block, [&](const TokenEdit& edit) { buffer[edit.token_id - begin] = edit.score; });
    if (token_bitmask_ != nullptr) {
      for (int64_t word = 0; word * 32 < length; ++word) {
        const uint32_t allowed = static_cast<uint32_t>(token_bitmask_[begin / 32 + word]);
        if (allowed == 0xFFFFFFFFu) continue;
        for (int64_t i = word * 32; i < word * 32 + 32; ++i)
          if ((allowed >> (i % 32) & 1u) == 0) buffer[i] = -kInf;
      }
    }
    return buffer;
  }

  // The pass saw the logits of edited tokens. A block is read again only where it lost its maximum.
  void correct_maxima() {
    float buffer[kBlock];
    for (int64_t i = 0; i < edits_.size(); ++i) {
      const TokenEdit& edit = edits_[i];
      const int64_t b = edit.token_id / kBlock;
      float& largest = scratch_.block_max[b];
      if (edit.score >= largest) {
        largest = edit.score;
      } else if (base_score(edit.token_id) == largest) {
        const float* scores = compose_block(b, buffer, true);
        F32 v = load(scores);
        for (int64_t j = kLanes; j < kBlock; j += kLanes) v = max(v, load(scores + j));
        largest = reduce_max(v);
      }
    }
  }

  // Returns whether the scores have a NaN: a ban may cover the one that the pass saw.
  bool recompute_maxima_without_nan() {
    bool found = false;
    float buffer[kBlock];
    for (int64_t b = 0; b < blocks_; ++b) {
      const float* scores = block(b, buffer);
      float largest = -kInf;
      for (int64_t i = 0; i < kBlock; ++i) {
        found |= scores[i] != scores[i];
        largest = scores[i] > largest ? scores[i] : largest;
      }
      scratch_.block_max[b] = largest;
    }
    return found;
  }

  static constexpr int kMaxParts = 256;
  // Reading several streams keeps more of the memory busy than one: 40 us against 47 for 128,256 floats that are not in
  // the cache, on one core of a Xeon.
  static constexpr int64_t kStreams = 8;

  const ShapingParams& params_;
  const int64_t vocab_size_;
  const int64_t blocks_;
  const int64_t element_size_;
  const char* const logits_;
  const float* const bias_;
  const int32_t* const token_bitmask_;
  Scratch& scratch_;
  TokenEdits edits_;
  float max_score_ = -kInf;
  RowStatus status_ = kOk;
  bool log_softmax_ = false;
  float max_logit_ = 0;
  float log_sum_ = 0;
};

}  // namespace pygen::cpu::PYGEN_ISA
