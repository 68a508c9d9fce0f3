// The tokens of a row that no tile covers: those whose score differs from their logit (seen in the history, banned or
// suppressed) and the row's edges. One bit per position hides them from the scan. The block that leads a row computes
// the score of each of them once; from then on they are candidates beside the tiles.
//
// A token's index among the extra ones is the number of bits below its own, so equal ids of the history meet without a
// search.
#pragma once

#include "common/penalties.h"
#include "cuda/row_layout.cuh"

namespace pygen::cuda {

// What the history says of a token: how often it was generated, and flags.
constexpr uint32_t kSeen = 1u << 30;
constexpr uint32_t kBanned = 1u << 31;
constexpr uint32_t kEdge = 1u << 29;
constexpr uint32_t kCountMask = kEdge - 1;

// Where a launch keeps the extra tokens.
struct ExtraPlan {
  bool history = false;  // tokens of the history or suppressed ones are among them
  int capacity = 0;      // of a row
  // Not in shared memory but in the workspace, so many words per row.
  bool bits_far = false, tokens_far = false;
  int64_t far_words = 0;
};

// Words for the bits of so many positions: whole groups of eight.
PYGEN_HOST_DEVICE int64_t words_of_bits(int64_t positions) { return (positions / 256 + 1) * 8; }
// Enough for a row of any dtype, wherever its first logit is.
PYGEN_HOST_DEVICE int64_t words_of_row(int64_t vocab_size) { return words_of_bits(vocab_size + 8); }

// `kFar`: they may be in the workspace.
template <DType kType, bool kFar>
class ExtraTokens {
 public:
  using Layout = RowLayout<kType>;

  // `far`: the row's words of the workspace. `scores`: room for near(plan) of them.
  PYGEN_DEVICE ExtraTokens(const ShapingParams& params, const ExtraPlan& plan, uint32_t* far, Shared<float> scores,
                           SharedMemory& shared)
      : any_(plan.history), capacity_(plan.capacity), facts_(scores.as<uint32_t>()) {
    const int words = plan.history ? static_cast<int>(words_of_row(params.vocab_size)) : 0;
    bits_ = shared.take<uint32_t>(plan.bits_far ? 0 : words);
    ranks_ = shared.take<uint32_t>(words / 8);
    tokens_ = shared.take<uint32_t>(plan.tokens_far ? 0 : capacity_);
    if (kFar && plan.bits_far) {
      far_bits_ = far;
      far += words;
    }
    if (kFar && plan.tokens_far) far_tokens_ = far;
  }

  // Of how many the scores are in shared memory.
  PYGEN_DEVICE static int near(const ExtraPlan& plan) { return plan.tokens_far ? 0 : plan.capacity; }
  PYGEN_DEVICE bool are_far() const { return kFar && far_tokens_ != nullptr; }

  static size_t bytes(const ExtraPlan& plan, int64_t vocab_size) {
    const auto rounded = [](size_t size) { return (size + 15) / 16 * 16; };
    const size_t words = plan.history ? static_cast<size_t>(words_of_row(vocab_size)) : 0;
    return (plan.bits_far ? 0 : words * 4) + rounded(words / 8 * 4) +
           (plan.tokens_far ? 0 : 2 * rounded(static_cast<size_t>(plan.capacity) * 4));
  }

  // Whether the scan has bits to look at.
  PYGEN_DEVICE bool any() const { return any_; }

  // Sets the bits of the slice. `leads`: of the whole row, and lists the tokens with what the history says of each; then
  // penalize() each. All threads of a block; barriers inside and behind. `smem` as in block_reduce.
  PYGEN_DEVICE void collect(const ShapingParams& params, int64_t row, const Layout& layout, bool leads,
                            Shared<uint64_t> smem) {
    if (!any_) {
      count_ = leads ? layout.edges() : 0;
#pragma unroll 1
      for (int i = thread_index(); i < count_; i += kThreads) {
        tokens_.set(i, static_cast<uint32_t>(layout.edge(i)));
        facts_.set(i, kEdge);
      }
      __syncthreads();
      return;
    }
    const int end = words_of(layout.positions());
    const int first = leads ? 0 : min(layout.first_vector() * kCount / 32, end);
    const int last = leads ? end : min(layout.last_vector() * kCount / 32, end);
#pragma unroll 1
    for (int i = first + thread_index(); i < last; i += kThreads) set_word(i, 0);
    penalties_ = Penalties{knob_at(params.repetition_penalty, row), knob_at(params.presence_penalty, row),
                           knob_at(params.frequency_penalty, row)};
    __syncthreads();
    // Marks, and then notes: a token's index is known once all are marked.
#pragma unroll 1
    for (bool marked = false;; marked = true) {
      const auto visit = [&](int token, uint32_t facts) {
        if (marked) {
          note(token, facts, layout);
        } else if (leads || layout.in_slice(token)) {
          set_bit(token + layout.padding());
        }
      };
      each_id(params, row, layout, leads, visit);
      __syncthreads();
      if (marked || !leads) return;
      count_tokens(layout, smem);
#pragma unroll 1
      for (int i = thread_index(); i < count_; i += kThreads) set_facts(i, 0);
      __syncthreads();
    }
  }

  // The bits of a vector's positions.
  PYGEN_DEVICE uint32_t hidden(int vector) const {
    const unsigned position = static_cast<unsigned>(vector) * kCount;
    return word(static_cast<int>(position / 32)) >> position % 32;
  }

  PYGEN_DEVICE int count() const { return count_; }
  // Goes on for an object that has listed them.
  PYGEN_DEVICE void resume(int count) { count_ = count; }
  PYGEN_DEVICE int token(int i) const { return static_cast<int>(are_far() ? far_tokens_[i] : tokens_.get(i)); }
  PYGEN_DEVICE float score(int i) const { return float_of(facts(i)); }
  // Replaces the facts of the token by its score, computed from its score without them.
  PYGEN_DEVICE void penalize(int i, float score, bool allowed) {
    const uint32_t own = facts(i), count = own & kCountMask;
    if ((own & kSeen) != 0 && penalties_.repetition != 1.0f) score = repetition_penalized(score, penalties_.repetition);
    if (count > 0) score = count_penalized(score, count, penalties_.presence, penalties_.frequency);
    set_facts(i, bits_of(allowed && (own & kBanned) == 0 ? score : -kInfinity));
  }

 private:
  static constexpr int kCount = LogitVector<kType>::kCount;

  struct Penalties {
    float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
    PYGEN_DEVICE bool act() const { return repetition != 1.0f || presence != 0.0f || frequency != 0.0f; }
  };

  PYGEN_DEVICE static int words_of(int positions) { return static_cast<int>(words_of_bits(positions)); }

  // Calls visit(token, facts) for every occurrence of a token that the history or `suppress` makes an extra one, and for
  // the edges. One loop for all: `visit` is there once.
  template <typename Visit>
  PYGEN_DEVICE void each_id(const ShapingParams& params, int64_t row, const Layout& layout, bool edges,
                            const Visit& visit) const {
    const bool has_ngrams = knob_at(params.no_repeat_ngram_size, row) > 0;
    const int64_t* history = params.input_ids + row * params.input_ids_stride;
    const int64_t* suppressed = params.suppress + row * params.suppress_stride;
    const int length = params.input_ids != nullptr ? static_cast<int>(history_length_of(params, row)) : 0;
    const int listed = length + (params.suppress != nullptr ? static_cast<int>(params.suppress_count) : 0);
    const int all = listed + (edges ? layout.edges() : 0);
    // The first id that was generated.
    const int first = static_cast<int>(min(knob_at(params.prompt_lengths, row), int64_t{length}));
    const auto id_at = [&](int i) -> int64_t {
      if (i < length) return history[i];
      return i < listed ? suppressed[i - length] : layout.edge(i - listed);
    };
    // Reads one turn ahead.
    int64_t next = 0;
#pragma unroll 1
    for (int i = thread_index() - kThreads; i < all; i += kThreads) {
      const int64_t id = next;
      if (i + kThreads < all) next = id_at(i + kThreads);
      if (i < 0) continue;
      uint32_t facts = i < listed ? kBanned : kEdge;
      if (i < length) {
        facts = penalties_.act() ? kSeen | static_cast<uint32_t>(i >= first) : 0u;
        if (has_ngrams && completes_ngram(params, row, i)) facts |= kBanned;
      }
      if (facts != 0 && static_cast<uint64_t>(id) < static_cast<uint64_t>(layout.vocab_size()))
        visit(static_cast<int>(id), facts);
    }
  }

  // Whether the n - 1 ids in front of position `pos` of the history are also its last ones.
  PYGEN_COLD static bool completes_ngram(const ShapingParams& params, int64_t row, int pos) {
    const int64_t n = knob_at(params.no_repeat_ngram_size, row);
    if (pos < n - 1) return false;
    const int before = static_cast<int>(n - 1);
    const int64_t* history = params.input_ids + row * params.input_ids_stride;
    const int64_t* last = history + (history_length_of(params, row) - before);
#pragma unroll 1
    for (int j = 0; j < before; ++j) {
      const int64_t id = last[j];
      if (history[pos - before + j] != id || static_cast<uint64_t>(id) >= static_cast<uint64_t>(params.vocab_size))
        return false;
    }
    return true;
  }

  // Counts the bits: `ranks_` becomes, per eight words, the number of those before.
  PYGEN_DEVICE void count_tokens(const Layout& layout, Shared<uint64_t> smem) {
    const int groups = words_of(layout.positions()) / 8;
    uint64_t before = 0;
    for (int first = 0; first < groups; first += kThreads) {
      const int group = first + thread_index();
      uint32_t own = 0;
      if (group < groups)
#pragma unroll
        for (int i = 0; i < 8; ++i) own += static_cast<uint32_t>(__popc(word(group * 8 + i)));
      const RunningSum sum = block_inclusive_sum(own, smem);
      if (group < groups) ranks_.set(group, static_cast<uint32_t>(before + sum.here) - own);
      before += sum.all;
    }
    count_ = static_cast<int>(before);
    __syncthreads();
  }

  PYGEN_DEVICE int index_of(int position) const {
    const int last = position / 32;
    int index = static_cast<int>(ranks_.get(position / 256));
#pragma unroll 1
    for (int i = last & ~7; i < last; ++i) index += __popc(word(i));
    return index + __popc(word(last) & ((1u << position % 32) - 1));
  }

  PYGEN_DEVICE void note(int token, uint32_t facts, const Layout& layout) {
    const int i = index_of(token + layout.padding());
    const uint32_t before = or_facts(i, facts & ~kCountMask);
    if ((facts & kCountMask) != 0) add_facts(i, facts & kCountMask);
    if (before != 0) return;
    if (are_far()) {
      far_tokens_[i] = static_cast<uint32_t>(token);
    } else {
      tokens_.set(i, static_cast<uint32_t>(token));
    }
  }

  PYGEN_DEVICE uint32_t word(int i) const { return kFar && far_bits_ != nullptr ? far_bits_[i] : bits_.get(i); }
  PYGEN_DEVICE void set_word(int i, uint32_t value) {
    if (kFar && far_bits_ != nullptr) {
      far_bits_[i] = value;
    } else {
      bits_.set(i, value);
    }
  }
  PYGEN_DEVICE void set_bit(int position) {
    const uint32_t bit = 1u << position % 32;
    if (kFar && far_bits_ != nullptr) {
      atomicOr(far_bits_ + position / 32, bit);
    } else {
      bits_.bit_or(position / 32, bit);
    }
  }
  PYGEN_DEVICE uint32_t* far_facts() const { return far_tokens_ + capacity_; }
  PYGEN_DEVICE uint32_t facts(int i) const { return are_far() ? far_facts()[i] : facts_.get(i); }
  PYGEN_DEVICE void set_facts(int i, uint32_t value) {
    if (are_far()) {
      far_facts()[i] = value;
    } else {
      facts_.set(i, value);
    }
  }
  PYGEN_DEVICE uint32_t or_facts(int i, uint32_t value) {
    return are_far() ? atomicOr(far_facts() + i, value) : facts_.bit_or(i, value);
  }
  PYGEN_DEVICE void add_facts(int i, uint32_t value) {
    if (are_far()) {
      atomicAdd(far_facts() + i, value);
    } else {
      facts_.add(i, value);
    }
  }

  bool any_;
  int capacity_;
  int count_ = 0;
  Shared<uint32_t> bits_, ranks_, tokens_;
  Shared<uint32_t> facts_;  // by the time of the scores these
  uint32_t* far_bits_ = nullptr;
  uint32_t* far_tokens_ = nullptr;
  Penalties penalties_;
};

}  // namespace pygen::cuda
