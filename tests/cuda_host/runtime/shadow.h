// For every word of shared memory: was it written, and who used it since which barrier.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cuda_host/shared.h"

namespace pygen::cuda::host {

struct Thread;

// Uses of a word that no use since has to be ordered after in their place. The scope says who they were: lanes of one
// warp, several warps of a block, or several blocks.
class Uses {
 public:
  // Whether `thread`, now, is not separated by a barrier from one of these by another thread.
  bool meets(const Thread& thread) const;
  void add(const Thread& thread, const void* place);
  void clear() {
    scope_ = Scope::kNobody;
    others_behind_ = 0;
  }

  unsigned last_thread() const { return thread_; }
  unsigned last_block() const { return block_; }
  const void* last_place() const { return place_; }

 private:
  enum class Scope : uint8_t { kNobody, kWarp, kBlock, kCluster };

  void begin(const Thread& thread);
  bool meets_in_block(const Thread& thread) const;
  void add_to_other_blocks(const Thread& thread);

  const void* place_ = nullptr;
  uint32_t arrivals_ = 0;  // of the block, at the barrier of the cluster
  uint32_t block_epoch_ = 0;
  uint32_t time_ = 0;   // of the warp
  uint32_t lanes_ = 0;  // of the warp
  uint16_t thread_ = 0;
  uint16_t warp_ = 0;
  uint8_t block_ = 0;
  Scope scope_ = Scope::kNobody;
  // Other blocks used the word before they had as many arrivals: the latest of them, by how many fewer. 0: none did.
  uint8_t others_behind_ = 0;
};

struct Cell {
  Uses reads;
  Uses writes;
  Uses atomics;
  Uses peeks;
  uint32_t generation = 0;
  int32_t pieces = -1;  // where its four bytes are watched one by one
  bool written = false;
  bool pending = false;  // a copy is in flight, that of the last write
};

// What is wrong with a use; of a race, what others did to the word, and who; of a copy in flight, whose it is.
struct Fault {
  bool unwritten = false;
  bool pending = false;
  const char* did = nullptr;
  Uses by;
  explicit operator bool() const { return unwritten || pending || did != nullptr; }
};

class Shadow {
 public:
  // Nothing is written, nobody was here.
  void reset(unsigned bytes);
  // Notes a use of bytes [at, at + bytes); the first fault of it.
  Fault use(const Thread& thread, unsigned at, unsigned bytes, Access access, const void* place);

 private:
  Cell& cell(unsigned word);
  std::array<Cell, 4>& pieces_of(Cell& cell);

  std::vector<Cell> cells_;
  std::vector<std::array<Cell, 4>> pieces_;
  uint32_t generation_ = 0;
};

}  // namespace pygen::cuda::host
