// The blocks of one cluster, alive together, and who runs.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cuda_host/device.h"
#include "runtime/fiber.h"
#include "runtime/shadow.h"

namespace pygen::cuda::host {

struct Block;
struct Warp;

// An asynchronous copy in flight, into the block of its thread.
struct Copy {
  unsigned byte = 0;   // of the block's shared memory
  uint32_t group = 0;  // groups that the thread had closed before
  bool late = false;   // happens at the wait; else it happened at its issue
  const void* from = nullptr;
  uint4 value{};  // at the issue
  LoadAgain load_again = nullptr;
  const void* place = nullptr;
};

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned index = 0;  // in the block
  unsigned lane = 0;
  bool returned = false;
  bool waited_for_previous = false;
  std::vector<Copy> copies;  // the oldest first
  uint32_t closed_groups = 0;
  uint32_t cluster_waits = 0;  // barriers of the cluster passed
  bool waits_for_cluster = false;
  // While suspended: in what, called where.
  const char* waits_in = nullptr;
  const void* place = nullptr;
  // What it brings to a meeting of the warp, and what it takes away.
  uint64_t value = 0;
  int argument = 0;
  int width = 0;
  uint64_t result = 0;
};

// Lanes on their way to the same function of a warp with the same mask.
struct Meeting {
  WarpOp op;
  unsigned mask;
  unsigned arrived;
};

struct Warp {
  Thread* lanes = nullptr;
  unsigned size = 0;
  unsigned number = 0;  // in the cluster
  std::vector<Meeting> meetings;
  // Counts the __syncwarp of any of its lanes. What lane b did before reach[a][b] has happened before lane a goes on.
  uint32_t time = 0;
  std::array<std::array<uint32_t, kWarp>, kWarp> reach{};
};

struct Barrier {
  BlockOp op = BlockOp::kSync;
  unsigned arrived = 0;
  unsigned yes = 0;
  int result = 0;
};

struct Block {
  unsigned rank = 0;   // in the cluster
  unsigned index = 0;  // in the grid
  Thread* threads = nullptr;
  uint32_t epoch = 0;     // barriers passed
  uint32_t arrivals = 0;  // at the barrier of the cluster
  Barrier barrier;
  std::vector<unsigned char> memory;  // 16 bytes more than asked for, for the alignment
  unsigned char* shared = nullptr;
  Shadow shadow;
  // The use by another block with the most arrivals at the barrier of the cluster before it.
  const Thread* remote_user = nullptr;
  const void* remote_place = nullptr;
  uint32_t remote_arrivals = 0;
};

struct Cluster {
  std::vector<Fiber> stacks;  // of the largest launch so far
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  unsigned threads_per_block = 0;
  uint32_t phases = 0;   // of its barrier, completed
  unsigned arrived = 0;  // blocks, in this phase
};

struct Running {
  Launch launch;
  Body body = nullptr;
  const void* context = nullptr;
  Cluster cluster;
  Thread* thread = nullptr;  // null: no kernel runs
};

Running& running();

// What a thread may not leave behind.
void check_returned(const Thread& thread);

inline Thread& current() { return *running().thread; }

}  // namespace pygen::cuda::host
