// What one thread needs for one row. Kept between calls, sized by the vocabulary and not by the number of rows.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

// A growing array of trivial elements. std::vector would do, but its code would be shared between instruction sets.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Contents survive.
  T* reserve(int64_t capacity) {
    if (capacity > capacity_) {
      const int64_t grown = capacity > 2 * capacity_ ? capacity : 2 * capacity_;
      void* data = std::realloc(data_, static_cast<size_t>(grown) * sizeof(T));
      if (data == nullptr) throw std::bad_alloc();
      data_ = static_cast<T*>(data);
      capacity_ = grown;
    }
    return data_;
  }
  void push(const T& value) {
    reserve(size_ + 1);
    data_[size_++] = value;
  }
  void truncate(int64_t size) { size_ = size; }
  void clear() { size_ = 0; }
  int64_t size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
  int64_t size_ = 0;
};

// A token whose score differs from its logit: penalised or banned.
struct TokenEdit {
  int32_t token_id;
  int32_t next;  // in the same block, -1 at the end
  float score;
  bool seen;      // occurs in input_ids: repetition penalty
  bool banned;    // -inf
  int64_t count;  // occurrences among the generated tokens
};

struct ScoredToken {
  float score;
  int32_t token_id;
};

// Best first, ties to the lowest id.
struct BetterToken {
  bool operator()(const ScoredToken& a, const ScoredToken& b) const {
    return a.score != b.score ? a.score > b.score : a.token_id < b.token_id;
  }
};

// A candidate of a selection.
struct KeyedWeight {
  float key;
  float weight;
};

struct Scratch {
  Buffer<float> block_max;      // (blocks,)
  Buffer<float> block_sum;      // (blocks,) of e^(logit - block_max)
  Buffer<int32_t> first_edit;   // (blocks,) index of a block's first edit, or -1
  int64_t first_edit_size = 0;  // how many of them are initialised
  Buffer<TokenEdit> edits;
  Buffer<float> scores;       // the survivors' scores, or all
  Buffer<int32_t> token_ids;  // of the survivors, ascending
  Buffer<float> bracket[2];   // candidates of a selection
  Buffer<KeyedWeight> sorted;
  Buffer<ScoredToken> ordered;
  Buffer<uint32_t> words;  // of the Mersenne Twister
};

inline Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace pygen::cpu::PYGEN_ISA
