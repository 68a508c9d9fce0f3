// How a row is divided, and reads of its logits.
//
// Positions count from the 16-byte boundary at or before the row's first logit: position = padding + token. Vectors of
// 16 bytes hold kCount positions; 32 vectors, one warp's read, are a stripe. A block of the cluster owns a slice of
// consecutive stripes. A tile is 8 << s positions that one warp reads at once; the tiles' maxima show where large
// scores are.
#pragma once

#include "common/sample_params.h"
#include "cuda/reduce.cuh"

namespace pygen::cuda {

constexpr float kInfinity = __builtin_huge_valf();

// Maxima that are kept of a row, unless it is so long that a tile would be larger than a warp's read. So many that few
// scores besides the n largest reach the n-th largest maximum, and so few that 512 threads read them in eight steps.
constexpr int kMaxTiles = 4096;

// How a launch divides its rows, all of them alike.
struct Geometry {
  int cluster = 1;        // blocks per row
  int log2_tile = 3;      // positions per tile
  int stripes = 1;        // of a slice
  int tiles = 1;          // of a row; rows that start on a boundary leave some empty
  bool resident = false;  // the slice's raw logits are kept in shared memory
};

template <DType kDType>
struct LogitVector {
  static constexpr int kLog2Count = kDType == DType::kFloat32 ? 2 : 3;
  static constexpr int kCount = 1 << kLog2Count;
  static constexpr int kBytes = 16 / kCount;  // of a logit

  PYGEN_DEVICE static float from_half(uint32_t bits) {
    return kDType == DType::kFloat16 ? float_from_half_bits(static_cast<uint16_t>(bits)) : float_of(bits << 16);
  }
  PYGEN_DEVICE static void unpack(const uint4& raw, float (&out)[kCount]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kDType == DType::kFloat32) {
        out[i] = float_of(words[i]);
      } else {
        out[2 * i] = from_half(words[i] & 0xFFFFu);
        out[2 * i + 1] = from_half(words[i] >> 16);
      }
    }
  }
  // The bits of the logit at an address, and of -inf.
  PYGEN_DEVICE static uint32_t load(const char* at) {
    if constexpr (kDType == DType::kFloat32) {
      return load_scalar(reinterpret_cast<const uint32_t*>(at));
    } else {
      return load_scalar(reinterpret_cast<const uint16_t*>(at));
    }
  }
  static constexpr uint32_t kMinusInfinity = kDType == DType::kFloat32   ? 0xFF800000u
                                             : kDType == DType::kFloat16 ? 0xFC00u
                                                                         : 0xFF80u;
};

template <DType kDType>
class RowLayout {
 public:
  using Vector = LogitVector<kDType>;

  PYGEN_DEVICE RowLayout(const ShapingParams& params, const Geometry& geometry, int64_t row)
      : log2_tile_(geometry.log2_tile), vocab_size_(static_cast<int>(params.vocab_size)) {
    const char* logits = static_cast<const char*>(params.logits) + row * params.logits_stride * Vector::kBytes;
    const int offset = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16);
    aligned_ = logits - offset;
    padding_ = offset / Vector::kBytes;
    const int stripes = (padding_ + vocab_size_ + kStripe - 1) / kStripe;
    const int first = static_cast<int>(cluster_rank()) * geometry.stripes;
    first_stripe_ = first < stripes ? first : stripes;
    last_stripe_ = first + geometry.stripes < stripes ? first + geometry.stripes : stripes;
    tiles_ = (stripes * kStripe) >> log2_tile_;
  }

  static constexpr int kStripe = kWarp * Vector::kCount;  // positions

  PYGEN_DEVICE int vocab_size() const { return vocab_size_; }
  PYGEN_DEVICE int padding() const { return padding_; }
  // The slice's vectors, whole stripes, and tiles.
  PYGEN_DEVICE int first_vector() const { return first_stripe_ * kWarp; }
  PYGEN_DEVICE int last_vector() const { return last_stripe_ * kWarp; }
  PYGEN_DEVICE int first_tile() const { return (first_stripe_ * kStripe) >> log2_tile_; }
  PYGEN_DEVICE int last_tile() const { return (last_stripe_ * kStripe) >> log2_tile_; }
  // Of the row: the tiles that slices cover.
  PYGEN_DEVICE int tiles() const { return tiles_; }
  PYGEN_DEVICE int tile_of(int vector) const { return (vector * Vector::kCount) >> log2_tile_; }
  // Vectors of a tile: lanes that share one.
  PYGEN_DEVICE int log2_lanes() const { return log2_tile_ - Vector::kLog2Count; }
  // Of the vector's first position; negative in the padding.
  PYGEN_DEVICE int token_of(int vector) const { return vector * Vector::kCount - padding_; }
  PYGEN_DEVICE bool in_slice(int token) const {
    const int position = token + padding_;
    return token >= 0 && token < vocab_size_ && position >= first_stripe_ * kStripe &&
           position < last_stripe_ * kStripe;
  }

  // Logits outside the row are -inf, and their memory is not read.
  PYGEN_DEVICE uint4 load(int vector) const {
    const char* at = aligned_ + static_cast<int64_t>(vector) * 16;
    const int token = token_of(vector);
    if (token >= 0 && token + Vector::kCount <= vocab_size_) return load_vector(at);
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < Vector::kCount; ++i) {
      const bool inside = token + i >= 0 && token + i < vocab_size_;
      const uint32_t bits = inside ? Vector::load(at + i * Vector::kBytes) : Vector::kMinusInfinity;
      words[i * Vector::kBytes / 4] |= bits << (i * Vector::kBytes % 4 * 8);
    }
    return uint4{words[0], words[1], words[2], words[3]};
  }

 private:
  const char* aligned_;
  int log2_tile_;
  int vocab_size_;
  int padding_;
  int first_stripe_, last_stripe_;
  int tiles_;
};

}  // namespace pygen::cuda
