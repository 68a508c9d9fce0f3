// What the passes over a row share in shared memory: the row, its survivors, and what a selection among them knows.
#pragma once

#include "cuda/row_team.cuh"
#include "cuda/sorted_list.cuh"

namespace pygen::cuda {

// What a pass over a row needs, in shared memory: the functions below are not inlined, and as arguments these objects
// would be in local memory. The same in all threads of a block.
template <typename Scores>
struct ViewState {
  Scores row;
  Shared<uint64_t> list;  // of its RowSmem
  int cluster;
  int steps;  // of a pass over the slice
  float temperature, largest;
};

// A search for the largest key at which the weight of all keys >= it reaches a target, digit by digit.
struct Selection {
  enum class Key { kScore, kStep, kNearness, kId, kLowId, kHighId };
  enum class Weight { kCount, kMass };

  Key kind;
  Weight weight;
  uint64_t target;
  double share;       // where it is not 0, of the weight of all survivors, the target
  float about, also;  // the center of kNearness; of kLowId and kHighId only tokens with these scores count

  bool found;
  int unknown;     // low bits of the key
  uint32_t key;    // the others
  uint64_t above;  // weight of larger keys
  uint64_t at;     // of those that begin like this one

  Selection() = default;
  PYGEN_DEVICE Selection(Key kind_, Weight weight_, uint64_t target_, double share_, float about_ = 0.0f,
                         float also_ = 0.0f)
      : kind(kind_),
        weight(weight_),
        target(target_),
        share(share_),
        about(about_),
        also(also_),
        found(true),
        unknown(kind_ == Key::kStep ? 22 : 32),
        key(0),
        above(0),
        at(0) {}

  PYGEN_DEVICE int digit_bits() const { return unknown > 10 ? 11 : 10; }
  PYGEN_DEVICE uint64_t weight_of(float score, float largest) const {
    return weight == Weight::kCount ? 1 : mass_of(score, largest);
  }
};

// A kernel takes it first, and then the RowWords: so the functions find both without being told where.
template <typename Scores>
struct ViewSmem {
  Shared<ViewState<Scores>> state;
  Shared<Interval> interval;  // of the survivors
  Shared<Selection> selection;

  PYGEN_DEVICE explicit ViewSmem(SharedMemory& shared)
      : state(shared.take<ViewState<Scores>>(1)),
        interval(shared.take<Interval>(1)),
        selection(shared.take<Selection>(1)) {}
  static constexpr size_t kBytes = (sizeof(ViewState<Scores>) + 15) / 16 * 16 + (sizeof(Interval) + 15) / 16 * 16 +
                                   (sizeof(Selection) + 15) / 16 * 16;
};

}  // namespace pygen::cuda
