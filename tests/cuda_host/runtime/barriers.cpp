// __syncthreads and its relatives, cluster_sync.
#include "runtime/report.h"
#include "runtime/scheduler.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

const char* name_of(BlockOp op) {
  switch (op) {
    case BlockOp::kSync: return "__syncthreads";
    case BlockOp::kCount: return "__syncthreads_count";
    case BlockOp::kAnd: return "__syncthreads_and";
    case BlockOp::kOr: return "__syncthreads_or";
  }
  return "";
}

int combined(const Barrier& barrier) {
  switch (barrier.op) {
    case BlockOp::kSync: return 0;
    case BlockOp::kCount: return static_cast<int>(barrier.yes);
    case BlockOp::kAnd: return barrier.yes == barrier.arrived;
    case BlockOp::kOr: return barrier.yes != 0;
  }
  return 0;
}

}  // namespace

int meet_block(BlockOp op, bool predicate) {
  const void* place = __builtin_return_address(0);
  Cluster& cluster = running().cluster;
  Thread& self = current();
  Block& block = *self.block;
  Barrier& barrier = block.barrier;
  if (barrier.arrived == 0) barrier.op = op;
  if (barrier.op != op)
    fail("barrier", &self, place,
         std::string("came to ") + name_of(op) + " where other threads of the block wait in " + name_of(barrier.op));
  ++barrier.arrived;
  barrier.yes += predicate;
  if (barrier.arrived < cluster.threads_per_block) {
    suspend(name_of(op), place);
    return barrier.result;
  }
  barrier.result = combined(barrier);
  barrier.arrived = 0;
  barrier.yes = 0;
  ++block.epoch;
  for (unsigned i = 0; i < cluster.threads_per_block; ++i)
    if (i != self.index) wake(block.threads[i]);
  return barrier.result;
}

void meet_cluster() {
  const void* place = __builtin_return_address(0);
  Cluster& cluster = running().cluster;
  Thread& self = current();
  ++cluster.arrived;
  if (cluster.arrived < cluster.threads.size()) {
    suspend("cluster_sync", place);
    return;
  }
  cluster.arrived = 0;
  ++cluster.epoch;
  for (Block& block : cluster.blocks) ++block.epoch;
  for (Thread& thread : cluster.threads)
    if (&thread != &self) wake(thread);
}

unsigned size_of_cluster() { return running().launch.cluster; }
unsigned rank_in_cluster() { return current().block->rank; }

}  // namespace pygen::cuda::host
