// Second looks at a scanned row. What the block that leads looks for in it: all scores that reach a bound, and the lowest
// token with the largest score. Only the tiles whose maximum says so are read again.
#pragma once

#include "cuda/row_scores.cuh"

namespace pygen::cuda {

// Lists every finite score whose quotient by the temperature is at least `low`, in any order. counters: [0] counts
// all of them, even those that the list cannot hold. `tiles`: kListCapacity numbers. All threads of the block that
// leads; barriers around and inside.
template <typename Scores>
PYGEN_DEVICE void gather(const Scores& scores, float low, float temperature, Shared<uint32_t> tiles,
                         Shared<uint32_t> counters, Shared<uint64_t> list) {
  const auto& layout = scores.layout();
  const auto& maxima = scores.maxima();
  const auto& extra = scores.extra();
  __syncthreads();
  if (thread_index() < 2) counters.set(thread_index(), 0);
  __syncthreads();
  const float least = Scores::below_quotient(low, temperature);
  const auto offer = [&](float score, int token) {
    score = score / temperature;
    if (!(score >= low)) return;
    const uint32_t at = counters.add(0, 1);
    if (at < kListCapacity) list.set(static_cast<int>(at), list_entry(score, token));
  };
#pragma unroll 1
  for (int i = thread_index(); i < layout.tiles(); i += kThreads) {
    const float max_score = maxima.get(i);
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
  const int sweeps = layout.tile_sweeps(), vectors = found * sweeps;
#pragma unroll 1
  for (int i = thread_index(); i < vectors + extra.count(); i += kThreads) {
    float x[Scores::kCount];
    int token;
    uint32_t hits;
    if (i < vectors) {
      const int at = quotient(i, sweeps);
      const int vector = layout.vector_of(static_cast<int>(tiles.get(at)), i - at * sweeps);
      scores.look(vector, x);
      token = layout.token_of(vector);
      hits = Scores::reaching(x, least);
    } else {
      x[0] = extra.score(i - vectors);
      token = extra.token(i - vectors);
      hits = x[0] > -kInfinity && x[0] >= least;
    }
    for (; hits != 0; hits &= hits - 1) {
      const int at = __ffs(static_cast<int>(hits)) - 1;
      offer(Scores::picked(x, at), token + at);
    }
  }
  __syncthreads();
}

// Makes the maxima of the tiles as if NaN were -inf. All threads of the block that leads; barriers around.
template <typename Scores>
PYGEN_DEVICE void drop_nans(const Scores& scores) {
  const auto& layout = scores.layout();
  const auto& maxima = scores.maxima();
  __syncthreads();
#pragma unroll 1
  for (int tile = thread_index(); tile < layout.tiles(); tile += kThreads) {
    if (maxima.get(tile) == maxima.get(tile)) continue;
    float max_score = -kInfinity;
#pragma unroll 1
    for (int i = 0; i < layout.tile_sweeps(); ++i) {
      float x[Scores::kCount];
      scores.look(layout.vector_of(tile, i), x);
#pragma unroll
      for (int j = 0; j < Scores::kCount; ++j) max_score = fmaxf(max_score, x[j]);
    }
    maxima.set(tile, max_score);
  }
  __syncthreads();
}

// The lowest token whose score is `largest`, the row's maximum; INT_MAX without one. All threads of the block that
// leads. `tiles`: kThreads numbers; `counter`: one; `smem` as in block_reduce.
template <typename Scores>
PYGEN_DEVICE int lowest_token_in(const Scores& scores, float largest, Shared<uint32_t> tiles, Shared<uint32_t> counter,
                                 Shared<uint64_t> smem) {
  const auto& layout = scores.layout();
  const auto& maxima = scores.maxima();
  const auto& extra = scores.extra();
  // Tokens of an earlier group are lower.
  uint32_t group = 0x7FFFFFFFu;
#pragma unroll 1
  for (int tile = layout.tiles() - kThreads + thread_index(); tile >= 0; tile -= kThreads)
    if (maxima.get(tile) == largest) group = static_cast<uint32_t>(tile / kThreads);
  uint32_t token = 0x7FFFFFFFu;
#pragma unroll 1
  for (int i = thread_index(); i < extra.count(); i += kThreads)
    if (extra.score(i) == largest) token = min(token, static_cast<uint32_t>(extra.token(i)));
  if (thread_index() == 0) counter.set(0, 0);
  const auto first = static_cast<uint32_t>(block_reduce(static_cast<uint64_t>(group), Smaller{}, smem));
  if (group == first && first != 0x7FFFFFFFu)
    tiles.set(static_cast<int>(counter.add(0, 1)), first * kThreads + threadIdx.x);
  __syncthreads();
  const int sweeps = layout.tile_sweeps(), vectors = static_cast<int>(counter.get(0)) * sweeps;
#pragma unroll 1
  for (int i = thread_index(); i < vectors; i += kThreads) {
    const int at = quotient(i, sweeps);
    const int vector = layout.vector_of(static_cast<int>(tiles.get(at)), i - at * sweeps);
    if (!layout.is_full(vector)) continue;
    float x[Scores::kCount];
    scores.look(vector, x);
    const uint32_t hidden = extra.any() ? extra.hidden(vector) : 0u;
    uint32_t equal = 0;
#pragma unroll
    for (int j = 0; j < Scores::kCount; ++j) equal |= static_cast<uint32_t>(x[j] == largest) << j;
    equal &= ~hidden;
    if (equal == 0) continue;
    const int at_token = layout.token_of(vector) + __ffs(static_cast<int>(equal)) - 1;
    token = min(token, static_cast<uint32_t>(at_token));
  }
  return static_cast<int>(block_reduce(static_cast<uint64_t>(token), Smaller{}, smem));
}

// Makes the maxima and the sums of the slice again, where the scores are no longer those of the scan. All threads of a
// block.
template <typename Scores>
PYGEN_DEVICE void look_again(const Scores& scores, float temperature) {
  const auto& layout = scores.layout();
  const float scale = Scores::scale_of(temperature);
#pragma unroll 1
  for (int group = layout.first_group(); group < layout.last_group(); ++group) {
    const int tile = group * kThreads + thread_index();
    TileScan<Scores::kType> of_tile;
#pragma unroll 1
    for (int i = 0; i < layout.tile_sweeps(); ++i) {
      float x[Scores::kCount];
      scores.look(layout.vector_of(tile, i), x);
      of_tile.template add_scores<Keep::kSums>(x, scale);
    }
    scores.maxima().set(tile, of_tile.largest());
    if (scores.has_sums()) scores.sums().set(tile, of_tile.sum());
  }
}

}  // namespace pygen::cuda
