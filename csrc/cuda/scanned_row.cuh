// The shared memory and the scores of one row, for the ops that scan it. Built from a kernel's parameters alone, so that a
// function that is not inlined builds it again instead of getting it through local memory.
#pragma once

#include "cuda/row_view.cuh"

namespace pygen::cuda {

struct NoSmem {
  PYGEN_DEVICE explicit NoSmem(SharedMemory&) {}
};

// `OfOp`: what else the op has in shared memory, of constant size.
template <DType kType, bool kShaped, typename OfOp = NoSmem>
struct ScannedRow {
  using Scores = RowScores<kType, kShaped>;

  int64_t row;
  SharedMemory shared;
  ViewSmem<Scores> view;
  RowWords words;
  OfOp of_op;
  RowSmem smem;
  RowTeam team;
  Scores scores;

  // `far`: the workspace for the extra tokens of all rows, or null. `turn`: of the team of an object that this one goes on
  // for.
  PYGEN_DEVICE ScannedRow(const ShapingParams& params, const RowLaunch& launch, uint32_t* far, int turn)
      : row(cluster_index()),
        view(shared),
        words(shared),
        of_op(shared),
        smem(words, launch.geometry, shared),
        team(launch.geometry.cluster, smem, turn),
        scores(params, launch, row, rank_in_row(launch.geometry), far + row * launch.extra.far_words, smem.slots,
               shared) {}
};

}  // namespace pygen::cuda
