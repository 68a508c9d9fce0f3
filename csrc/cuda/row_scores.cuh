// One row's scores before temperature: logits + bias, penalties, bans, suppression and token_bitmask, computed where
// they are read and never stored. `scan` is one pass over memory. It leaves the maxima of the tiles with the block that
// owns them; `bring_together` gives them to the block that leads the row, which also scores the extra tokens. Tiles and
// extra tokens are then its candidates. row_search.cuh has what reads a row again.
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
        sums_(shared.take<float>(launch.sums && !launch.tiles_far ? tiles_of(launch.geometry) : 0)),
        maxima_(shared.take<float>((launch.tiles_far ? 0 : tiles_of(launch.geometry)) + Extra::near(launch.extra))),
        with_sums_(launch.sums),
        stream_(launch.geometry, slots),
        extra_(params, launch.extra, far, maxima_.from(launch.tiles_far ? 0 : layout_.tiles()), shared) {}

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
    return extra_.are_far() && i >= layout_.tiles() ? extra_.score(i - layout_.tiles()) : maxima_.get(i);
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
    scan_to<kKeep, kKeep == Keep::kMaxima ? kDepth : 2>(temperature, visit,
                                                        [&](int tile, const TileScan<kDType>& of_tile) {
                                                          maxima_.set(tile, of_tile.largest());
                                                          if constexpr (kKeep != Keep::kMaxima)
                                                            sums_.set(tile, of_tile.sum());
                                                          if constexpr (kKeep == Keep::kRaw)
                                                            raw_maxima.set(tile, of_tile.largest_logit());
                                                        });
  }
  // The same for another kernel.
  template <Keep kKeep>
  PYGEN_DEVICE void scan(float temperature, const FarTiles& tiles) {
    scan_to<kKeep, kDepth>(temperature, NoVisit{}, [&](int tile, const TileScan<kDType>& of_tile) {
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
    Shared<float> tiles = maxima_;
#pragma unroll 1
    for (int i = 0; i <= static_cast<int>(with_sums_); ++i) {
      take_tiles(tiles, cluster);
      tiles = sums_;
    }
    __syncthreads();
  }
  // Takes a number per tile from the other blocks, between two barriers of the row. All threads of the block that leads.
  PYGEN_DEVICE void take_tiles(const Shared<float>& tiles, int cluster) const {
    const int own = layout_.last_group() * kThreads;
#pragma unroll 1
    for (int i = thread_index(); i < own; i += kThreads) {
#pragma unroll 4
      for (int rank = 1; rank < cluster; ++rank)
        tiles.set(rank * own + i, tiles.of_block(static_cast<unsigned>(rank)).get(rank * own + i));
    }
  }

  // The scores of a vector; -inf where it is not full, and in place of the extra tokens.
  PYGEN_DEVICE void look(int vector, float (&x)[kCount]) const {
    uint4 raw = no_logits();
    if (layout_.is_full(vector)) {
      if (stream_.holds_slice()) {
        const int rank = quotient(vector, layout_.slice_vectors());
        raw = stream_.again(static_cast<unsigned>(rank), vector - rank * layout_.slice_vectors());
      } else {
        raw = layout_.load(vector);
      }
      raw = without_hidden(vector, raw);
    }
    compose(vector, raw, x);
  }

  // Scores of neighbouring tokens, from `token` on: those with a bit in `which` were found.
  struct Found {
    int next = 0;  // the step behind
    int token = 0;
    uint32_t which = 0;
    float x[kCount] = {};

    template <typename Visit>
    PYGEN_DEVICE void for_each(const Visit& visit) const {
      // `visit` is there once: the scores move on by one place.
      Found rest = *this;
#pragma unroll 1
      for (; rest.which != 0; rest.which >>= 1) {
        if ((rest.which & 1u) != 0) visit(rest.x[0], rest.token);
        ++rest.token;
        rest.move_on(-kInfinity);
      }
    }
    // Drops the first score and adds a last one.
    PYGEN_DEVICE void move_on(float last) {
#pragma unroll
      for (int i = 1; i < kCount; ++i) x[i - 1] = x[i];
      x[kCount - 1] = last;
    }
  };

  // The finite scores that are at least `low`, a bit each.
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

  // A pass over the slice takes so many steps, one vector per thread. In the block that leads it has also steps for the
  // extra tokens.
  PYGEN_DEVICE int steps(bool leads) const {
    return steps_of_tiles() + (leads ? (extra_.count() + kThreads - 1) / kThreads : 0);
  }
  // The finite scores of a step that are at least `low`. A tile without any is left at once.
  PYGEN_DEVICE Found found_at(int step, float low) const {
    Found found;
    found.next = step + 1;
    if (step < steps_of_tiles()) {
      const int group = quotient(step, layout_.tile_sweeps()), sweep = step - group * layout_.tile_sweeps();
      const int tile = (layout_.first_group() + group) * kThreads + thread_index();
      const float max_score = maxima_.get(tile);
      if (!(max_score > -kInfinity) || !(max_score >= low)) {
        found.next = step - sweep + layout_.tile_sweeps();
        return found;
      }
      const int vector = layout_.vector_of(tile, sweep);
      look(vector, found.x);
      found.token = layout_.token_of(vector);
      found.which = reaching(found.x, low);
    } else if (const int i = (step - steps_of_tiles()) * kThreads + thread_index(); i < extra_.count()) {
      found.x[0] = extra_.score(i);
      found.token = extra_.token(i);
      found.which = found.x[0] > -kInfinity && found.x[0] >= low;
    }
    return found;
  }

  // Calls visit(score, token) for the finite scores of the slice that are at least `low`, and in the block that leads for
  // those of the extra tokens.
  template <typename Visit>
  PYGEN_DEVICE void for_each_score(float low, bool leads, const Visit& visit) const {
#pragma unroll 1
    for (int step = 0; step < steps(leads);) {
      const Found found = found_at(step, low);
      step = found.next;
      found.for_each(visit);
    }
  }

  // log2(e) / temperature, for TileScan.
  PYGEN_DEVICE static float scale_of(float temperature) {
    return fminf(1.44269504088896341f / temperature, -kLowestFloat);
  }
  // No score below it has a quotient by the temperature that reaches `low`: quotient and product round by 6e-8 each.
  PYGEN_DEVICE static float below_quotient(float low, float temperature) {
    if (temperature == 1.0f) return low;
    const float product = low * temperature;
    return product - (fabsf(product) * 1e-6f + 1e-37f);
  }

 private:
  // A scan that calls leave(tile, TileScan) for every tile. `kUnrolled`: how many vectors the loop has in its code, where
  // they are simple. Where one kernel does everything, sums are a large part of it.
  template <Keep kKeep, int kUnrolled, typename Visit, typename Leave>
  PYGEN_DEVICE void scan_to(float temperature, const Visit& visit, const Leave& leave) {
    constexpr bool kVisits = !std::is_same_v<Visit, NoVisit>;
    const float scale = scale_of(temperature);
    int vector = layout_.first_vector() + thread_index();
    int tile = layout_.first_group() * kThreads + thread_index();
    for (int group = layout_.first_group(); group < layout_.last_group(); ++group, tile += kThreads) {
      TileScan<kDType> of_tile;
      for (int first = 0; first < layout_.tile_sweeps(); first += kDepth) {
#pragma unroll(kShaped || kVisits ? 1 : kUnrolled)
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

  PYGEN_DEVICE int steps_of_tiles() const {
    return (layout_.last_group() - layout_.first_group()) * layout_.tile_sweeps();
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
  Shared<float> sums_;
  Shared<float> maxima_;  // behind them the scores of the extra tokens, unless these are far
  bool with_sums_;
  LogitStream<kDType> stream_;
  Extra extra_;
  bool normalized_ = false;
  float max_logit_ = 0.0f, log_sum_ = 0.0f;
};

}  // namespace pygen::cuda
