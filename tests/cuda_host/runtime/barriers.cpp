// __syncthreads and its relatives, the barrier of a cluster.
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
    case BlockOp::kArriveAtCluster: return "cluster_arrive";
  }
  return "";
}

int combined(const Barrier& barrier) {
  switch (barrier.op) {
    case BlockOp::kSync:
    case BlockOp::kArriveAtCluster: return 0;
    case BlockOp::kCount: return static_cast<int>(barrier.yes);
    case BlockOp::kAnd: return barrier.yes == barrier.arrived;
    case BlockOp::kOr: return barrier.yes != 0;
  }
  return 0;
}

// All threads of the block are there.
void arrive_at_cluster(Cluster& cluster, Block& block) {
  ++block.arrivals;
  if (++cluster.arrived < cluster.blocks.size()) return;
  cluster.arrived = 0;
  ++cluster.phases;
  for (Thread& thread : cluster.threads) {
    if (!thread.waits_for_cluster) continue;
    thread.waits_for_cluster = false;
    wake(thread);
  }
}

int meet(BlockOp op, bool predicate, const void* place) {
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
  if (op == BlockOp::kArriveAtCluster) arrive_at_cluster(cluster, block);
  return barrier.result;
}

}  // namespace

int meet_block(BlockOp op, bool predicate) {
  const void* place = __builtin_return_address(0);
  const Thread& self = current();
  if (op == BlockOp::kArriveAtCluster && self.cluster_waits < self.block->arrivals)
    fail("barrier", &self, place, "came to cluster_arrive again without cluster_wait between");
  return meet(op, predicate, place);
}

void wait_for_cluster() {
  const void* place = __builtin_return_address(0);
  Thread& self = current();
  if (self.cluster_waits == self.block->arrivals)
    fail("barrier", &self, place, "came to cluster_wait without cluster_arrive before");
  if (running().cluster.phases == self.cluster_waits) {
    self.waits_for_cluster = true;
    suspend("cluster_wait", place);
  }
  ++self.cluster_waits;
}

unsigned size_of_cluster() { return running().launch.cluster; }
unsigned rank_in_cluster() { return current().block->rank; }

}  // namespace pygen::cuda::host
