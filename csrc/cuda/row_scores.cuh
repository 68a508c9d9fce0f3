// One row's scores before temperature: logits + bias, penalties, bans, suppression and token_bitmask, computed where
// they are read and never stored. `scan` is one pass over memory. It leaves the maxima of the tiles with the block that
// owns them; `bring_together` gives them to the block that leads the row, which also scores the extra tokens. Tiles and
// extra tokens are then its candidates. `gather` reads again only the tiles that reach a bound.
//
// For beams the scores may start as log-softmax(logits): `normalize`.
#pragma once

#include <type_traits>

#include "cuda/extra_tokens.cuh"
#include "cuda/list_entry.cuh"
#include "cuda/logit_stream.cuh"
#include "cuda/tile_scan.cuh"

namespace pygen::cuda {

// All threads of all blocks of a row.
PYGEN_DEVICE void row_sync(int cluster) {
  if (cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
}

struct RowLaunch {
  Geometry geometry;
  ExtraPlan extra;
  bool sums = false;       // the scan also sums the tiles' masses; without them a nucleus needs the whole row
  bool tiles_far = false;  // the scan leaves them to another kernel
};

// The numbers of a row's tiles in the workspace.
struct FarTiles {
  float* maxima = nullptr;
  float* sums = nullptr;
};

// What a scan does with every vector beside its maximum: nothing.
struct NoVisit {};

// `kShaped`: a bias or a token_bitmask may act on every token, or the extra tokens may be in the workspace.
template <DType kDType, bool kShaped_>
class RowScores {
 public:
  static constexpr DType kType = kDType;
  static constexpr bool kShaped = kShaped_;
  using Vector = LogitVector<kDType>;
  using Extra = ExtraTokens<kDType, kShaped>;
  static constexpr int kCount = Vector::kCount;

  // All threads of a block. `rank`: of the block among those of the row. `far`: the row's words of the workspace.
  // `slots`: of the scan.
  PYGEN_DEVICE RowScores(const ShapingParams& params, const RowLaunch& launch, int64_t row, int rank, uint32_t* far,
                         Shared<uint32_t> slots, SharedMemory& shared)
      : layout_(params, launch.geometry, row, rank),
        bias_(params.bias != nullptr ? params.bias + row * params.bias_stride : nullptr),
        token_bitmask_(params.token_bitmask != nullptr ? params.token_bitmask + row * params.token_bitmask_stride
                                                       : nullptr),
        maxima_(shared.take<float>(launch.tiles_far ? 0 : tiles_of(launch.geometry))),
        sums_(shared.take<float>(launch.sums && !launch.tiles_far ? tiles_of(launch.geometry) : 0)),
        with_sums_(launch.sums),
        stream_(launch.geometry, slots),
        extra_(params, launch.extra, far, shared) {}

  // Shared memory that the constructor takes, in bytes.
  static size_t shared_bytes(const RowLaunch& launch, int64_t vocab_size) {
    const int numbers = launch.tiles_far ? 0 : launch.sums ? 2 : 1;
    return static_cast<size_t>(tiles_of(launch.geometry)) * 4 * numbers + Extra::bytes(launch.extra, vocab_size);
  }

  PYGEN_DEVICE const RowLayout<kDType>& layout() const { return layout_; }
  PYGEN_DEVICE bool has_sums() const { return with_sums_; }
  PYGEN_DEVICE const Extra& extra() const { return extra_; }
  // Goes on for an object that has scanned the row and scored the extra tokens.
  PYGEN_DEVICE void resume(int extra_count) {
    stream_.resume();
    extra_.resume(extra_count);
  }

  // Starts reading the logits.
  PYGEN_DEVICE void start() { stream_.start(layout_); }
  // Before a scan: hides the extra tokens from it. All threads; barriers inside.
  PYGEN_DEVICE void hide_extra(const ShapingParams& params, int64_t row, bool leads, Shared<uint64_t> smem) {
    extra_.collect(params, row, layout_, leads, smem);
  }
  // Scores the extra tokens. All threads of the block that leads; a barrier behind.
  PYGEN_DEVICE void score_extra() {
#pragma unroll 1
    for (int i = thread_index(); i < extra_.count(); i += kThreads) {
      const int token = extra_.token(i);
      float score = normalized(layout_.logit_at(token));
      bool allowed = true;
      if constexpr (kShaped) {
        if (bias_ != nullptr) score = score + load_scalar(bias_ + token);
        allowed = token_bitmask_ == nullptr || (bitmask_word(token >> 5) >> (token & 31) & 1u) != 0;
      }
      extra_.penalize(i, score, allowed);
    }
    __syncthreads();
  }

  // From here on a logit x counts as (x - max_logit) - log_sum, before bias and penalties.
  PYGEN_DEVICE void normalize(float max_logit, float log_sum) {
    normalized_ = true;
    max_logit_ = max_logit;
    log_sum_ = log_sum;
  }
  // What `normalize` got.
  PYGEN_DEVICE float2 log_softmax() const { return {max_logit_, log_sum_}; }
  PYGEN_DEVICE float normalized(float logit) const { return normalized_ ? (logit - max_logit_) - log_sum_ : logit; }

  // What the block that leads knows once the row was scanned: the maxima of tiles [0, tiles()), and behind them the
  // scores of the extra tokens. NaN where there is one.
  PYGEN_DEVICE int candidates() const { return layout_.tiles() + extra_.count(); }
  PYGEN_DEVICE float candidate(int i) const {
    return i < layout_.tiles() ? maxima_.get(i) : extra_.score(i - layout_.tiles());
  }
  // Candidates that can be finite, at most.
  PYGEN_DEVICE int peaks() const {
    return min(layout_.tiles(), layout_.last_full() - layout_.first_full()) + extra_.count();
  }
  // The sum of e^((score - its maximum) / temperature).
  PYGEN_DEVICE float mass_of_candidate(int i) const { return i < layout_.tiles() ? sums_.get(i) : 1.0f; }
  PYGEN_DEVICE const Shared<float>& maxima() const { return maxima_; }
  PYGEN_DEVICE const Shared<float>& sums() const { return sums_; }

  // The pass over the slice. All lanes of a warp call visit(scores, first token, largest of them); lanes without a
  // vector see -inf. Where kRaw, `raw_maxima` gets those of the logits, hidden ones among them, and `sums` theirs. Ends
  // without a barrier.
  template <Keep kKeep, typename Visit>
  PYGEN_DEVICE void scan(float temperature, const Visit& visit, Shared<float> raw_maxima = Shared<float>()) {
    scan_to<kKeep>(temperature, visit, [&](int tile, const TileScan<kDType>& of_tile) {
      maxima_.set(tile, of_tile.largest());
      if constexpr (kKeep != Keep::kMaxima) sums_.set(tile, of_tile.sum());
      if constexpr (kKeep == Keep::kRaw) raw_maxima.set(tile, of_tile.largest_logit());
    });
  }
  // The same for another kernel.
  template <Keep kKeep>
  PYGEN_DEVICE void scan(float temperature, const FarTiles& tiles) {
    scan_to<kKeep>(temperature, NoVisit{}, [&](int tile, const TileScan<kDType>& of_tile) {
      tiles.maxima[tile] = of_tile.largest();
      if constexpr (kKeep != Keep::kMaxima) tiles.sums[tile] = of_tile.sum();
    });
  }
  // What another kernel has left. All threads of a block; a barrier behind.
  PYGEN_DEVICE void take(const FarTiles& tiles) {
    for (int i = thread_index(); i < layout_.tiles(); i += kThreads) {
      maxima_.set(i, tiles.maxima[i]);
      if (with_sums_) sums_.set(i, tiles.sums[i]);
    }
    __syncthreads();
  }

  // After a scan: the block that leads takes what the others have. All threads of the row; barriers inside.
  PYGEN_DEVICE void bring_together(int cluster) {
    row_sync(cluster);
    if (cluster == 1 || cluster_rank() != 0) return;
    take_tiles(maxima_);
    if (with_sums_) take_tiles(sums_);
    __syncthreads();
  }
  // Takes a number per tile from the other blocks, between two barriers of the row. All threads of the block that leads.
  PYGEN_DEVICE void take_tiles(const Shared<float>& tiles) const {
    const int own = layout_.last_group() * kThreads;
    for (int i = own + thread_index(); i < layout_.tiles(); i += kThreads)
      tiles.set(i, tiles.of_block(static_cast<unsigned>(i / own)).get(i));
  }

  // Makes the maxima and the sums of the slice again, where the scores are no longer those of the scan.
  PYGEN_DEVICE void look_again(float temperature) {
    const float scale = fminf(kLog2E / temperature, -kLowestFloat);
#pragma unroll 1
    for (int group = layout_.first_group(); group < layout_.last_group(); ++group) {
      const int tile = group * kThreads + thread_index();
      TileScan<kDType> of_tile;
#pragma unroll 1
      for (int i = 0; i < layout_.tile_sweeps(); ++i) {
        float x[kCount];
        look(layout_.vector_of(tile, i), x);
        of_tile.template add_scores<Keep::kSums>(x, scale);
      }
      maxima_.set(tile, of_tile.largest());
      if (with_sums_) sums_.set(tile, of_tile.sum());
    }
  }

  // The scores of a vector; -inf where it is not full, and in place of the extra tokens.
  PYGEN_DEVICE void look(int vector, float (&x)[kCount]) const {
    uint4 raw = no_logits();
    if (layout_.is_full(vector)) {
      if (stream_.holds_slice()) {
        const int rank = vector / layout_.slice_vectors();
        raw = stream_.again(static_cast<unsigned>(rank), vector - rank * layout_.slice_vectors());
      } else {
        raw = layout_.load(vector);
      }
      raw = without_hidden(vector, raw);
    }
    compose(vector, raw, x);
  }

  // Calls visit(score, token) for the finite scores of the slice that are at least `low`, and in the block that leads for
  // those of the extra tokens.
  template <typename Visit>
  PYGEN_DEVICE void for_each_score(float low, bool leads, const Visit& visit) const {
    // One loop for tiles and extra tokens, and one over the scores that it finds: `visit` is there once.
#pragma unroll 1
    for (int group = layout_.first_group(); group <= layout_.last_group(); ++group) {
      const bool of_tiles = group < layout_.last_group();
      const int tile = group * kThreads + thread_index();
      int steps = layout_.tile_sweeps();
      if (of_tiles) {
        const float max_score = maxima_.get(tile);
        if (!(max_score > -kInfinity) || !(max_score >= low)) continue;
      } else {
        steps = leads ? (extra_.count() + kThreads - 1) / kThreads : 0;
      }
#pragma unroll 1
      for (int i = 0; i < steps; ++i) {
        float x[kCount];
        int token = 0;
        uint32_t found = 0;
        if (of_tiles) {
          const int vector = layout_.vector_of(tile, i);
          look(vector, x);
          token = layout_.token_of(vector);
          found = reaching(x, low);
        } else if (const int at = i * kThreads + thread_index(); at < extra_.count()) {
          x[0] = extra_.score(at);
          token = extra_.token(at);
          found = x[0] > -kInfinity && x[0] >= low;
        }
        for (; found != 0; found &= found - 1) {
          const int at = __ffs(static_cast<int>(found)) - 1;
          visit(picked(x, at), token + at);
        }
      }
    }
  }

  // Lists every finite score whose quotient by the temperature is at least `low`, in any order. counters: [0] counts
  // all of them, even those that the list cannot hold. `tiles`: kListCapacity numbers. All threads of the block that
  // leads; barriers around and inside.
  PYGEN_DEVICE void gather(float low, float temperature, Shared<uint32_t> tiles, Shared<uint32_t> counters,
                           Shared<uint64_t> list) const {
    __syncthreads();
    if (thread_index() < 2) counters.set(thread_index(), 0);
    __syncthreads();
    const float least = below_quotient(low, temperature);
    const auto offer = [&](float score, int token) {
      score = score / temperature;
      if (!(score >= low)) return;
      const uint32_t at = counters.add(0, 1);
      if (at < kListCapacity) list.set(static_cast<int>(at), list_entry(score, token));
    };
    for (int i = thread_index(); i < layout_.tiles(); i += kThreads) {
      const float max_score = maxima_.get(i);
      if (!(max_score > -kInfinity) || !(max_score >= least)) continue;
      const uint32_t at = counters.add(1, 1);
      if (at < kListCapacity) tiles.set(static_cast<int>(at), static_cast<uint32_t>(i));
    }
    __syncthreads();
    const int found = static_cast<int>(counters.get(1));
    if (found > kListCapacity) {
      if (thread_index() == 0) counters.add(0, kListCapacity + 1);
      __syncthreads();
      return;
    }
    // One loop for the vectors of the tiles and for the extra tokens.
    const int sweeps = layout_.tile_sweeps(), vectors = found * sweeps;
#pragma unroll 1
    for (int i = thread_index(); i < vectors + extra_.count(); i += kThreads) {
      float x[kCount];
      int token;
      uint32_t hits;
      if (i < vectors) {
        const int at = i / sweeps;
        const int vector = layout_.vector_of(static_cast<int>(tiles.get(at)), i - at * sweeps);
        look(vector, x);
        token = layout_.token_of(vector);
        hits = reaching(x, least);
      } else {
        x[0] = extra_.score(i - vectors);
        token = extra_.token(i - vectors);
        hits = x[0] > -kInfinity && x[0] >= least;
      }
      for (; hits != 0; hits &= hits - 1) {
        const int at = __ffs(static_cast<int>(hits)) - 1;
        offer(picked(x, at), token + at);
      }
    }
    __syncthreads();
  }

  // Makes the maxima of the tiles as if NaN were -inf. All threads of the block that leads; barriers around.
  PYGEN_DEVICE void drop_nans() {
    __syncthreads();
#pragma unroll 1
    for (int tile = thread_index(); tile < layout_.tiles(); tile += kThreads) {
      if (maxima_.get(tile) == maxima_.get(tile)) continue;
      float max_score = -kInfinity;
#pragma unroll 1
      for (int i = 0; i < layout_.tile_sweeps(); ++i) {
        float x[kCount];
        look(layout_.vector_of(tile, i), x);
#pragma unroll
        for (int j = 0; j < kCount; ++j) max_score = fmaxf(max_score, x[j]);
      }
      maxima_.set(tile, max_score);
    }
    __syncthreads();
  }

  // The lowest token whose score is `largest`, the row's maximum; INT_MAX without one. All threads of the block that
  // leads. `tiles`: kThreads numbers; `counter`: one; `smem` as in block_reduce.
  PYGEN_DEVICE int lowest_token_of(float largest, Shared<uint32_t> tiles, Shared<uint32_t> counter,
                                   Shared<uint64_t> smem) const {
    // Tokens of an earlier group are lower.
    uint32_t group = 0x7FFFFFFFu;
    for (int tile = layout_.tiles() - kThreads + thread_index(); tile >= 0; tile -= kThreads)
      if (maxima_.get(tile) == largest) group = static_cast<uint32_t>(tile / kThreads);
    uint32_t token = 0x7FFFFFFFu;
#pragma unroll 1
    for (int i = thread_index(); i < extra_.count(); i += kThreads)
      if (extra_.score(i) == largest) token = min(token, static_cast<uint32_t>(extra_.token(i)));
    if (thread_index() == 0) counter.set(0, 0);
    const auto first = static_cast<uint32_t>(block_reduce(static_cast<uint64_t>(group), Smaller{}, smem));
    if (group == first && first != 0x7FFFFFFFu)
      tiles.set(static_cast<int>(counter.add(0, 1)), first * kThreads + threadIdx.x);
    __syncthreads();
    const int sweeps = layout_.tile_sweeps(), vectors = static_cast<int>(counter.get(0)) * sweeps;
#pragma unroll 1
    for (int i = thread_index(); i < vectors; i += kThreads) {
      const int at = i / sweeps;
      const int vector = layout_.vector_of(static_cast<int>(tiles.get(at)), i - at * sweeps);
      if (!layout_.is_full(vector)) continue;
      float x[kCount];
      look(vector, x);
      const uint32_t hidden = extra_.any() ? extra_.hidden(vector) : 0u;
#pragma unroll
      for (int j = kCount - 1; j >= 0; --j)
        if (x[j] == largest && (hidden >> j & 1u) == 0)
          token = min(token, static_cast<uint32_t>(layout_.token_of(vector) + j));
    }
    return static_cast<int>(block_reduce(static_cast<uint64_t>(token), Smaller{}, smem));
  }

  // No score below it has a quotient by the temperature that reaches `low`: quotient and product round by 6e-8 each.
  PYGEN_DEVICE static float below_quotient(float low, float temperature) {
    if (temperature == 1.0f) return low;
    const float product = low * temperature;
    return product - (fabsf(product) * 1e-6f + 1e-37f);
  }

 private:
  static constexpr float kLog2E = 1.44269504088896341f;

  // A scan that calls leave(tile, TileScan) for every tile.
  template <Keep kKeep, typename Visit, typename Leave>
  PYGEN_DEVICE void scan_to(float temperature, const Visit& visit, const Leave& leave) {
    constexpr bool kVisits = !std::is_same_v<Visit, NoVisit>;
    const float scale = fminf(kLog2E / temperature, -kLowestFloat);
    int vector = layout_.first_vector() + thread_index();
    int tile = layout_.first_group() * kThreads + thread_index();
    for (int group = layout_.first_group(); group < layout_.last_group(); ++group, tile += kThreads) {
      TileScan<kDType> of_tile;
      for (int first = 0; first < layout_.tile_sweeps(); first += kDepth) {
#pragma unroll(kShaped || kVisits ? 1 : kDepth)
        for (int i = 0; i < kDepth; ++i) {
          stream_.wait();
          const bool full = stream_.is_full(i);
          if constexpr (kVisits) {
            float x[kCount];
            static_assert(kKeep != Keep::kRaw);
            const uint4 seen = full ? without_hidden(vector + i * kThreads, stream_.vector(i)) : no_logits();
            compose(vector + i * kThreads, seen, x);
            const float largest = of_tile.template add_scores<kKeep>(x, scale);
            visit(x, layout_.token_of(vector + i * kThreads), largest);
          } else if (full) {
            const uint4 raw = stream_.vector(i), seen = without_hidden(vector + i * kThreads, raw);
            if constexpr (kShaped) {
              float x[kCount];
              compose(vector + i * kThreads, seen, x);
              of_tile.template add_scores<kKeep>(x, scale);
              if constexpr (kKeep == Keep::kRaw) of_tile.add_raw(raw, scale);
            } else {
              of_tile.template add_logits<kKeep>(raw, seen, scale);
            }
          }
          stream_.copy_next(i);
        }
        stream_.end_round();
        vector += kDepth * kThreads;
      }
      leave(tile, of_tile);
    }
  }

  PYGEN_DEVICE static uint4 no_logits() {
    return {Vector::kMinusInfinity, Vector::kMinusInfinity, Vector::kMinusInfinity, Vector::kMinusInfinity};
  }
  PYGEN_DEVICE uint4 without_hidden(int vector, const uint4& raw) const {
    return extra_.any() ? Vector::mask(raw, extra_.hidden(vector)) : raw;
  }
  // The places of extra tokens in a vector, which need not be full.
  PYGEN_DEVICE uint32_t hidden_in(int vector) const {
    return extra_.any() && layout_.is_full(vector) ? extra_.hidden(vector) : 0u;
  }

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
  // The finite ones that are at least `low`, a bit each.
  PYGEN_DEVICE static uint32_t reaching(const float (&x)[kCount], float low) {
    uint32_t found = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) found |= static_cast<uint32_t>(x[i] > -kInfinity && x[i] >= low) << i;
    return found;
  }
  PYGEN_DEVICE static float picked(const float (&x)[kCount], int at) {
    float one = x[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) one = i == at ? x[i] : one;
    return one;
  }

  // `raw`: with -inf in place of extra tokens.
  PYGEN_DEVICE void compose(int vector, const uint4& raw, float (&x)[kCount]) const {
    Vector::unpack(raw, x);
    const int token = layout_.token_of(vector);
    if (normalized_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = (x[i] - max_logit_) - log_sum_;
    }
    if constexpr (!kShaped) return;
    if (bias_ != nullptr) {
      const uint32_t hidden = hidden_in(vector);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (token + i >= 0 && token + i < layout_.vocab_size() && (hidden >> i & 1u) == 0)
          x[i] = x[i] + load_scalar(bias_ + token + i);
    }
    if (token_bitmask_ != nullptr) {
      const uint32_t bits = allowed(token);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if ((bits >> i & 1u) == 0) x[i] = -kInfinity;
    }
  }

  RowLayout<kDType> layout_;
  const float* bias_;
  const int32_t* token_bitmask_;
  Shared<float> maxima_, sums_;
  bool with_sums_;
  LogitStream<kDType> stream_;
  Extra extra_;
  bool normalized_ = false;
  float max_logit_ = 0.0f, log_sum_ = 0.0f;
};

}  // namespace pygen::cuda
