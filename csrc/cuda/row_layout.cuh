// How a row is divided, and reads of its logits.
//
// Positions count from the 16-byte boundary at or before the row's first logit: position = padding + token. A vector is
// 16 bytes, kCount positions. A sweep is one vector of each of a block's threads; a tile is the vectors of one thread
// in `tile_sweeps` consecutive sweeps, so a thread keeps the maximum of a tile in a register. The tiles of the same
// sweeps are a group. A slice is consecutive sweeps, those of one block.
//
// Vectors that the row fills only in part, at most one at either end, belong to no tile: their tokens are the edges.
#pragma once

#include "common/sample_params.h"
#include "cuda/floats.cuh"
#include "cuda/reduce.cuh"

namespace pygen::cuda {

// Maxima that are kept of a row. So many that few scores besides the n largest reach the n-th largest maximum, and so
// few that 512 threads read them in eight steps.
constexpr int kMaxTiles = 4096;

// Sweeps that are copied ahead of the one that is read. 8 * 16 bytes * 512 threads are 64 KB, and an H200's memory
// needs 4.8 TB/s * 1 us / 132 multiprocessors = 36 KB in flight. Multiprocessors of other generations read less, and
// many have little shared memory.
#if !defined(__CUDA_ARCH__) || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
constexpr int kDepth = 8;
#else
constexpr int kDepth = 4;
#endif
// A tile has so many sweeps, or a multiple, or is the whole slice of a thread.
constexpr int kTileSweeps = 8;

// How a launch divides its rows, all of them alike.
struct Geometry {
  int cluster = 1;        // blocks of a cluster
  int slices = 1;         // of a row: the blocks that scan it
  int sweeps = 1;         // of a slice
  int tile_sweeps = 1;    // of a tile; the last tiles of a slice may have fewer
  int groups = 1;         // of a slice
  int slots = 0;          // sweeps that a block's shared memory holds during the scan
  bool resident = false;  // the slots hold the whole slice, for a second look
};

// Of a row.
PYGEN_HOST_DEVICE int tiles_of(const Geometry& geometry) { return geometry.slices * geometry.groups * kThreads; }

// In place of a block's rank: it has all slices of the row.
constexpr int kAllSlices = -1;

template <DType kType>
struct LogitVector {
  static constexpr int kLog2Count = kType == DType::kFloat32 ? 2 : 3;
  static constexpr int kCount = 1 << kLog2Count;
  static constexpr int kBytes = 16 / kCount;  // of a logit
  // -inf in all places of a word.
  static constexpr uint32_t kMinusInfinity = kType == DType::kFloat32   ? 0xFF800000u
                                             : kType == DType::kFloat16 ? 0xFC00FC00u
                                                                        : 0xFF80FF80u;

  PYGEN_DEVICE static float from_half(uint32_t bits) {
    return kType == DType::kFloat16 ? float_from_half_bits(static_cast<uint16_t>(bits)) : float_of(bits << 16);
  }
  PYGEN_DEVICE static void unpack(const uint4& raw, float (&out)[kCount]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kType == DType::kFloat32) {
        out[i] = float_of(words[i]);
      } else if constexpr (kType == DType::kBFloat16) {
        out[2 * i] = float_of(words[i] << 16);
        out[2 * i + 1] = float_of(words[i] & 0xFFFF0000u);
      } else {
        out[2 * i] = from_half(words[i] & 0xFFFFu);
        out[2 * i + 1] = from_half(words[i] >> 16);
      }
    }
  }

  // The larger place by place, NaN where one is.
  PYGEN_DEVICE static uint32_t larger(uint32_t a, uint32_t b) {
    if constexpr (kType == DType::kFloat32) {
      return bits_of(max_or_nan(float_of(a), float_of(b)));
    } else if constexpr (kType == DType::kFloat16) {
      return max_or_nan_of_halves(a, b);
    } else {
      return max_or_nan_of_bfloats(a, b);
    }
  }
  PYGEN_DEVICE static uint32_t larger(const uint4& raw) { return larger(larger(raw.x, raw.y), larger(raw.z, raw.w)); }
  PYGEN_DEVICE static uint32_t larger(uint32_t a, const uint4& raw) { return larger(a, larger(raw)); }
  // The larger of all places of a word.
  PYGEN_DEVICE static float largest(uint32_t word) {
    if constexpr (kType == DType::kFloat32) {
      return float_of(word);
    } else {
      return from_half(larger(word, word >> 16 | word << 16) & 0xFFFFu);
    }
  }
  // Replaces the places whose bit is set by -inf. The product moves bits 0 to 3 to the tops of the four bytes, and a
  // byte permutation spreads each of them over a place.
  PYGEN_DEVICE static uint4 mask(uint4 raw, uint32_t bits) {
    if constexpr (kType == DType::kFloat32) {
      return {(bits & 1) != 0 ? kMinusInfinity : raw.x, (bits & 2) != 0 ? kMinusInfinity : raw.y,
              (bits & 4) != 0 ? kMinusInfinity : raw.z, (bits & 8) != 0 ? kMinusInfinity : raw.w};
    } else {
      constexpr uint32_t kToTops = 1u << 7 | 1u << 14 | 1u << 21 | 1u << 28;
      const uint32_t low = (bits & 15) * kToTops, high = (bits >> 4 & 15) * kToTops;
      const auto masked = [](uint32_t word, uint32_t mask) { return (word & ~mask) | (kMinusInfinity & mask); };
      return {masked(raw.x, spread_signs<0x9988>(low)), masked(raw.y, spread_signs<0xBBAA>(low)),
              masked(raw.z, spread_signs<0x9988>(high)), masked(raw.w, spread_signs<0xBBAA>(high))};
    }
  }

  // The bits of the logit at an address.
  PYGEN_DEVICE static uint32_t load(const char* at) {
    if constexpr (kType == DType::kFloat32) {
      return load_scalar(reinterpret_cast<const uint32_t*>(at));
    } else {
      return load_scalar(reinterpret_cast<const uint16_t*>(at));
    }
  }
};

// a / b for a >= 0 and b > 0 whose quotient is below 2^22: less code than a division of integers.
PYGEN_DEVICE int quotient(int a, int b) {
  const int about = static_cast<int>(__fdividef(static_cast<float>(a), static_cast<float>(b)));
  const int rest = a - about * b;
  return about + static_cast<int>(rest >= b) - static_cast<int>(rest < 0);
}

template <DType kType>
class RowLayout {
 public:
  using Vector = LogitVector<kType>;

  // `rank`: of the slice, or kAllSlices.
  PYGEN_DEVICE RowLayout(const ShapingParams& params, const Geometry& geometry, int64_t row, int rank)
      : sweeps_(geometry.sweeps),
        tile_sweeps_(geometry.tile_sweeps),
        groups_(geometry.groups),
        first_slice_(rank == kAllSlices ? 0 : rank),
        last_slice_(rank == kAllSlices ? geometry.slices : rank + 1),
        tiles_(tiles_of(geometry)),
        vocab_size_(static_cast<int>(params.vocab_size)) {
    const char* logits = static_cast<const char*>(params.logits) + row * params.logits_stride * Vector::kBytes;
    const int offset = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16);
    aligned_ = logits - offset;
    padding_ = offset / Vector::kBytes;
    first_full_ = padding_ > 0 ? 1 : 0;
    const int last_full = (padding_ + vocab_size_) / Vector::kCount;
    full_ = last_full > first_full_ ? last_full - first_full_ : 0;
  }

  PYGEN_DEVICE int vocab_size() const { return vocab_size_; }
  PYGEN_DEVICE int padding() const { return padding_; }
  PYGEN_DEVICE int positions() const { return padding_ + vocab_size_; }
  PYGEN_DEVICE int tile_sweeps() const { return tile_sweeps_; }
  PYGEN_DEVICE int first_group() const { return first_slice_ * groups_; }
  PYGEN_DEVICE int last_group() const { return last_slice_ * groups_; }
  // Of the row.
  PYGEN_DEVICE int tiles() const { return tiles_; }
  // Vectors that the row fills: [first_full, last_full).
  PYGEN_DEVICE int first_full() const { return first_full_; }
  PYGEN_DEVICE int last_full() const { return first_full_ + full_; }

  PYGEN_DEVICE int slice_vectors() const { return sweeps_ * kThreads; }
  PYGEN_DEVICE int first_vector() const { return first_slice_ * slice_vectors(); }
  PYGEN_DEVICE int last_vector() const { return last_slice_ * slice_vectors(); }
  // The vector of a tile in its sweep number `sweep`; -1, which is not full, where it has none.
  PYGEN_DEVICE int vector_of(int tile, int sweep) const {
    const int group = tile / kThreads, slice = quotient(group, groups_);
    const int of_slice = (group - slice * groups_) * tile_sweeps_ + sweep;
    return of_slice < sweeps_ ? (slice * sweeps_ + of_slice) * kThreads + tile % kThreads : -1;
  }
  PYGEN_DEVICE bool is_full(int vector) const {
    return static_cast<unsigned>(vector - first_full_) < static_cast<unsigned>(full_);
  }
  // Of the vector's first position; negative in the padding.
  PYGEN_DEVICE int token_of(int vector) const { return vector * Vector::kCount - padding_; }
  PYGEN_DEVICE bool in_slice(int token) const {
    const int vector = (token + padding_) >> Vector::kLog2Count;
    return vector >= first_vector() && vector < last_vector();
  }

  PYGEN_DEVICE int edges() const { return vocab_size_ - full_ * Vector::kCount; }
  PYGEN_DEVICE int edge(int i) const {
    const int before = full_ > 0 ? token_of(first_full_) : vocab_size_;
    return i < before ? i : i + full_ * Vector::kCount;
  }

  PYGEN_DEVICE const char* address_of(int vector) const { return aligned_ + static_cast<int64_t>(vector) * 16; }
  PYGEN_DEVICE uint4 load(int vector) const { return load_vector(address_of(vector)); }
  PYGEN_DEVICE float logit_at(int token) const {
    const uint32_t bits = Vector::load(aligned_ + static_cast<int64_t>(token + padding_) * Vector::kBytes);
    if constexpr (kType == DType::kFloat32) {
      return float_of(bits);
    } else {
      return Vector::from_half(bits);
    }
  }

 private:
  const char* aligned_;
  int sweeps_, tile_sweeps_, groups_;
  int first_slice_, last_slice_;
  int tiles_;
  int vocab_size_;
  int padding_;
  int first_full_, full_;
};

}  // namespace pygen::cuda
