// One row's scores before temperature: logits + bias, penalties, bans, suppression and token_bitmask, computed where
// they are read and never stored. `scan` is one pass over memory. It leaves the maxima of the tiles with the block that
// owns them and with the leader, the block of rank 0. `gather` reads again only the tiles that reach a bound.
//
// For beams the scores may start as log-softmax(logits): `normalize`.
#pragma once

#include "cuda/penalized_tokens.cuh"

namespace pygen::cuda {

// Loads of vectors that a thread has in flight during the scan.
constexpr int kInFlight = 4;

// Scores that a list can hold.
constexpr int kListCapacity = 2048;

// All threads of all blocks of a row.
PYGEN_DEVICE void row_sync(int cluster) {
  if (cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
}

// A score and its token in one word: a larger word is a larger score, or an equal one of a lower id.
PYGEN_DEVICE uint64_t list_entry(float score, int token) {
  return static_cast<uint64_t>(ordered_key(score)) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(token));
}
PYGEN_DEVICE float score_of_entry(uint64_t entry) { return value_of_key(static_cast<uint32_t>(entry >> 32)); }
PYGEN_DEVICE int token_of_entry(uint64_t entry) { return static_cast<int>(0xFFFFFFFFu - static_cast<uint32_t>(entry)); }

template <DType kDType>
class RowScores {
 public:
  using Vector = LogitVector<kDType>;
  static constexpr int kCount = Vector::kCount;

  // All threads of a block. `sums`: whether `scan` also sums the masses of the tiles.
  PYGEN_DEVICE RowScores(const ShapingParams& params, const Geometry& geometry, int64_t row, int table_slots,
                         uint32_t* dense, bool sums, SharedMemory& shared)
      : layout_(params, geometry, row),
        cluster_(geometry.cluster),
        resident_(geometry.resident),
        with_sums_(sums),
        bias_(params.bias != nullptr ? params.bias + row * params.bias_stride : nullptr),
        token_bitmask_(params.token_bitmask != nullptr ? params.token_bitmask + row * params.token_bitmask_stride
                                                       : nullptr),
        maxima_(shared.take<float>(geometry.tiles)),
        sums_(shared.take<float>(sums ? geometry.tiles : 0)),
        raw_(shared.take<uint32_t>(resident_ ? geometry.stripes * kWarp * 4 : 0)),
        penalized_(params, row, layout_, table_slots, geometry.stripes * RowLayout<kDType>::kStripe, dense, shared) {}

  // Shared memory that the constructor takes, in bytes.
  static size_t shared_bytes(const Geometry& geometry, int table_slots, bool dense, bool sums) {
    const auto rounded = [](size_t bytes) { return (bytes + 15) / 16 * 16; };
    const size_t positions = static_cast<size_t>(geometry.stripes) * RowLayout<kDType>::kStripe;
    size_t bytes = rounded(static_cast<size_t>(geometry.tiles) * 4) * (sums ? 2 : 1);
    if (geometry.resident) bytes += static_cast<size_t>(geometry.stripes) * kWarp * 16;
    if (table_slots > 0 || dense)
      bytes += rounded((positions / 256 + 1) * 4) + 2 * rounded(static_cast<size_t>(table_slots) * 4);
    return bytes;
  }

  PYGEN_DEVICE const RowLayout<kDType>& layout() const { return layout_; }
  PYGEN_DEVICE const PenalizedTokens<kDType>& penalized() const { return penalized_; }
  PYGEN_DEVICE int cluster() const { return cluster_; }
  PYGEN_DEVICE bool has_sums() const { return with_sums_; }
  // The maxima of tiles [0, layout().tiles()): all of them with the leader, elsewhere those of the slice.
  PYGEN_DEVICE Shared<float> maxima() const { return maxima_; }
  // The sums of e^((score - tile's maximum) / temperature), in the same blocks as the maxima.
  PYGEN_DEVICE Shared<float> sums() const { return sums_; }

  // From here on a logit x counts as (x - max_logit) - log_sum, before bias and penalties.
  PYGEN_DEVICE void normalize(float max_logit, float log_sum) {
    normalized_ = true;
    max_logit_ = max_logit;
    log_sum_ = log_sum;
  }

  // The pass over the slice. All lanes of a warp call per_vector(scores, first token, largest of them); lanes outside
  // the row see -inf. Returns whether the thread saw a NaN, which the maxima leave out. Ends without a barrier.
  template <typename PerVector>
  PYGEN_DEVICE bool scan(float temperature, const PerVector& per_vector) const {
    const int last = layout_.last_vector();
    const int lanes = 1 << layout_.log2_lanes();
    const float scale = fminf(1.0f / temperature, 3e38f);
    const bool leads = cluster_rank() == 0;
    bool nan = false;
    int vector = layout_.first_vector() + thread_index();
    uint4 ahead[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i)
      if (vector + i * kThreads < last) ahead[i] = layout_.load(vector + i * kThreads);
    for (; vector < last; vector += kThreads) {
      const uint4 raw = ahead[0];
#pragma unroll
      for (int i = 1; i < kInFlight; ++i) ahead[i - 1] = ahead[i];
      if (vector + kInFlight * kThreads < last) ahead[kInFlight - 1] = layout_.load(vector + kInFlight * kThreads);
      if (resident_) raw_.set_vector((vector - layout_.first_vector()) * 4, raw);

      float x[kCount];
      compose(vector, raw, x);
      float max_score = -kInfinity;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        nan |= x[i] != x[i];
        max_score = fmaxf(max_score, x[i]);
      }
      per_vector(x, layout_.token_of(vector), max_score);
      max_score = warp_reduce(max_score, Larger{}, lanes);
      float sum = 0.0f;
      if (with_sums_) {
        if (max_score > -kInfinity && max_score < kInfinity) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) sum += expf((x[i] - max_score) * scale);
        }
        sum = warp_reduce(sum, Add{}, lanes);
      }
      if (lane_index() % lanes != 0) continue;
      const int tile = layout_.tile_of(vector);
      maxima_.set(tile, max_score);
      if (with_sums_) sums_.set(tile, sum);
      if (!leads) {
        maxima_.of_block(0).set(tile, max_score);
        if (with_sums_) sums_.of_block(0).set(tile, sum);
      }
    }
    return nan;
  }

  // The scores of a vector of the slice; needs no scan before.
  PYGEN_DEVICE void look(int vector, float (&x)[kCount]) const { compose(vector, layout_.load(vector), x); }

  // The same after a scan.
  PYGEN_DEVICE void look_again(int vector, float (&x)[kCount]) const {
    const uint4 raw = resident_ ? raw_.get_vector((vector - layout_.first_vector()) * 4) : layout_.load(vector);
    compose(vector, raw, x);
  }

  // Calls visit(scores, first token) for the slice's vectors whose tile's maximum passes `wanted`, all lanes of a warp
  // together or none. Tiles of -inf alone are never wanted.
  template <typename Wanted, typename Visit>
  PYGEN_DEVICE void for_each_vector(const Wanted& wanted, const Visit& visit) const {
    for (int vector = layout_.first_vector() + thread_index(); vector < layout_.last_vector(); vector += kThreads) {
      const float max_score = maxima_.get(layout_.tile_of(vector));
      if (__ballot_sync(kAllLanes, max_score > -kInfinity && wanted(max_score)) == 0) continue;
      float x[kCount];
      look_again(vector, x);
      visit(x, layout_.token_of(vector));
    }
  }

  // Sends every finite score whose quotient by the temperature is at least `low` to the leader's list, in any order.
  // The two counters have to be zero: [0] of the leader counts all scores sent, even those that the list cannot hold;
  // [1] counts the block's tiles. `tiles`: kListCapacity numbers in shared memory. Needs barriers before and after.
  PYGEN_DEVICE void gather(float low, float temperature, Shared<uint32_t> tiles, Shared<uint32_t> counters,
                           Shared<uint64_t> list) const {
    for (int tile = layout_.first_tile() + thread_index(); tile < layout_.last_tile(); tile += kThreads) {
      const float max_score = maxima_.get(tile);
      if (!(max_score > -kInfinity) || !(max_score / temperature >= low)) continue;
      const uint32_t at = counters.add(1, 1);
      if (at < kListCapacity) tiles.set(static_cast<int>(at), static_cast<uint32_t>(tile));
    }
    __syncthreads();
    const Shared<uint32_t> leaders = counters.of_block(0);
    const int found = static_cast<int>(counters.get(1));
    if (found > kListCapacity) {
      if (thread_index() == 0) leaders.add(0, static_cast<uint32_t>(found));
      return;
    }
    const Shared<uint64_t> to = list.of_block(0);
    const int log2_lanes = layout_.log2_lanes();
    for (int i = thread_index(); i < found << log2_lanes; i += kThreads) {
      float x[kCount];
      const int vector = (static_cast<int>(tiles.get(i >> log2_lanes)) << log2_lanes) + (i & ((1 << log2_lanes) - 1));
      look_again(vector, x);
      uint32_t count = 0;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const bool kept = x[j] > -kInfinity && x[j] / temperature >= low;
        x[j] = kept ? x[j] / temperature : -kInfinity;
        count += kept;
      }
      if (count == 0) continue;
      uint32_t at = leaders.add(0, count);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (!(x[j] > -kInfinity)) continue;
        if (at < kListCapacity) to.set(static_cast<int>(at), list_entry(x[j], layout_.token_of(vector) + j));
        ++at;
      }
    }
  }

  // The lowest token of the slice whose score is `largest`, the row's maximum; INT_MAX without one. `smem` as in
  // block_reduce.
  PYGEN_DEVICE int lowest_token_of(float largest, Shared<uint64_t> smem) const {
    uint32_t first = 0x7FFFFFFFu;
    for (int tile = layout_.first_tile() + thread_index(); tile < layout_.last_tile(); tile += kThreads)
      if (maxima_.get(tile) == largest) first = first < static_cast<uint32_t>(tile) ? first : tile;
    first = static_cast<uint32_t>(block_reduce(static_cast<uint64_t>(first), Smaller{}, smem));
    int token = 0x7FFFFFFF;
    if (first != 0x7FFFFFFFu && thread_index() < 1 << layout_.log2_lanes()) {
      const int vector = (static_cast<int>(first) << layout_.log2_lanes()) + thread_index();
      float x[kCount];
      look_again(vector, x);
#pragma unroll
      for (int i = kCount - 1; i >= 0; --i) {
        const int id = layout_.token_of(vector) + i;
        if (x[i] == largest && id >= 0 && id < layout_.vocab_size()) token = id;
      }
    }
    return static_cast<int>(block_reduce(static_cast<uint64_t>(token), Smaller{}, smem));
  }

 private:
  // Whether tokens may be drawn, one bit each from `token` on.
  PYGEN_DEVICE uint32_t allowed(int token) const {
    const int word = token >> 5, shift = token & 31;
    const uint32_t low = bitmask_word(word) >> shift;
    return shift + kCount > 32 ? low | bitmask_word(word + 1) << (32 - shift) : low;
  }
  PYGEN_DEVICE uint32_t bitmask_word(int word) const {
    const bool inside = word >= 0 && word <= (layout_.vocab_size() - 1) / 32;
    return inside ? static_cast<uint32_t>(load_scalar(token_bitmask_ + word)) : 0u;
  }

  PYGEN_DEVICE void compose(int vector, const uint4& raw, float (&x)[kCount]) const {
    Vector::unpack(raw, x);
    const int token = layout_.token_of(vector);
    if (normalized_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = (x[i] - max_logit_) - log_sum_;
    }
    if (bias_ != nullptr) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (token + i >= 0 && token + i < layout_.vocab_size()) x[i] = x[i] + load_scalar(bias_ + token + i);
    }
    if (penalized_.any() && penalized_.near(token)) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (token + i >= 0 && token + i < layout_.vocab_size()) x[i] = penalized_.apply(token + i, x[i]);
    }
    if (token_bitmask_ != nullptr) {
      const uint32_t bits = allowed(token);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if ((bits >> i & 1u) == 0) x[i] = -kInfinity;
    }
  }

  RowLayout<kDType> layout_;
  int cluster_;
  bool resident_;
  bool with_sums_;
  const float* bias_;
  const int32_t* token_bitmask_;
  Shared<float> maxima_, sums_;
  Shared<uint32_t> raw_;
  PenalizedTokens<kDType> penalized_;
  bool normalized_ = false;
  float max_logit_ = 0.0f, log_sum_ = 0.0f;
};

}  // namespace pygen::cuda
