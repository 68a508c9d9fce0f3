// One launch: its shape, its clusters in a random order, what is to be checked around each.
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "runtime/deadlock.h"
#include "runtime/device.h"
#include "runtime/loads.h"
#include "runtime/previous.h"
#include "runtime/report.h"
#include "runtime/scheduler.h"
#include "runtime/state.h"

namespace pygen::cuda::host {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocksOfCluster = 8;
constexpr unsigned kGarbage = 0xA5;

cudaError_t refused(cudaError_t error, const std::string& text) {
  report("launch", nullptr, nullptr, text);
  return error;
}

cudaError_t check(const Launch& launch, Kernel kernel) {
  const Device& device = current_device();
  if (launch.blocks == 0 || launch.blocks > 0x7fffffffu)
    return refused(cudaErrorInvalidConfiguration,
                   "`blocks` must be in [1, 2^31), got " + std::to_string(launch.blocks));
  if (launch.threads == 0 || launch.threads > kMostThreads)
    return refused(cudaErrorInvalidConfiguration,
                   "`threads` must be in [1, 1024], got " + std::to_string(launch.threads));
  if (launch.cluster == 0 || launch.cluster > kMostBlocksOfCluster)
    return refused(cudaErrorInvalidClusterSize, "`cluster` must be in [1, 8], got " + std::to_string(launch.cluster));
  if (launch.cluster > 1 && device.major < 9)
    return refused(cudaErrorInvalidClusterSize,
                   "`cluster` must be 1 below compute capability 9.0, got " + std::to_string(launch.cluster));
  if (launch.blocks % launch.cluster != 0)
    return refused(cudaErrorInvalidClusterSize, "`blocks` must be a multiple of `cluster`, got " +
                                                    std::to_string(launch.blocks) + " and " +
                                                    std::to_string(launch.cluster));
  if (launch.shared > static_cast<unsigned>(device.shared_per_block))
    return refused(cudaErrorInvalidValue, "`shared` must be at most " + std::to_string(device.shared_per_block) +
                                              " bytes, got " + std::to_string(launch.shared));
  if (launch.shared > allowed_shared(kernel))
    return refused(cudaErrorInvalidValue, "`shared` must be at most the " + std::to_string(allowed_shared(kernel)) +
                                              " bytes that the kernel may have, got " + std::to_string(launch.shared));
  if (launch.cluster > 1 && clusters_that_fit(launch.cluster) == 0)
    return refused(cudaErrorInvalidClusterSize,
                   "`cluster` is " + std::to_string(launch.cluster) + ", and the device has no room for one");
  return cudaSuccess;
}

// Threads keep their stacks from launch to launch.
void shape(Cluster& cluster, const Launch& launch) {
  const unsigned warps = (launch.threads + kWarp - 1) / kWarp;
  cluster.threads_per_block = launch.threads;
  if (cluster.stacks.size() < launch.cluster * launch.threads) cluster.stacks.resize(launch.cluster * launch.threads);
  cluster.threads.assign(launch.cluster * launch.threads, Thread());
  cluster.warps.resize(launch.cluster * warps);
  cluster.blocks.resize(launch.cluster);
  for (unsigned rank = 0; rank < launch.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    block.rank = rank;
    block.threads = &cluster.threads[rank * launch.threads];
    block.memory.resize(launch.shared + 16);
    block.shared = block.memory.data() + (16 - reinterpret_cast<uintptr_t>(block.memory.data()) % 16) % 16;
    for (unsigned i = 0; i < launch.threads; ++i) {
      Warp& warp = cluster.warps[rank * warps + i / kWarp];
      Thread& thread = block.threads[i];
      thread.fiber = &cluster.stacks[rank * launch.threads + i];
      thread.block = &block;
      thread.warp = &warp;
      thread.index = i;
      thread.lane = i % kWarp;
      warp.number = rank * warps + i / kWarp;
      if (thread.lane == 0) warp.lanes = &thread;
      warp.size = thread.lane + 1;
    }
  }
}

void begin_cluster(Cluster& cluster, const Launch& launch, unsigned first_block) {
  cluster.phases = 0;
  cluster.arrived = 0;
  for (Block& block : cluster.blocks) {
    block.index = first_block + block.rank;
    block.epoch = 0;
    block.arrivals = 0;
    block.barrier = Barrier();
    block.remote_user = nullptr;
    std::memset(block.shared, kGarbage, launch.shared);
    block.shadow.reset(launch.shared);
  }
  for (Warp& warp : cluster.warps) {
    warp.meetings.clear();
    if (warp.time == 0) continue;
    warp.time = 0;
    warp.reach = {};
  }
  for (Thread& thread : cluster.threads) {
    thread.returned = false;
    thread.waited_for_previous = false;
    thread.copies.clear();
    thread.closed_groups = 0;
    thread.cluster_waits = 0;
    thread.waits_for_cluster = false;
  }
}

// What can be said only when all blocks are through.
void end_cluster(const Cluster& cluster, const Launch& launch) {
  for (const Block& block : cluster.blocks) {
    if (block.remote_user != nullptr && block.remote_arrivals >= cluster.phases)
      report("cluster", block.remote_user, block.remote_place,
             "uses the shared memory of block rank " + std::to_string(block.rank) +
                 ", which may have returned: no cluster_sync follows");
    bool waited = !launch.dependent;
    for (unsigned i = 0; i < launch.threads; ++i) waited |= block.threads[i].waited_for_previous;
    if (!waited) report("dependent", block.threads, nullptr, "returned without wait_for_previous_kernel");
  }
}

// False when the launch has to end here.
bool run_one(Cluster& cluster, const Launch& launch, unsigned first_block) {
  begin_cluster(cluster, launch, first_block);
  if (launch.dependent) hide_previous_writes();
  bool whole = run_cluster();
  show_previous_writes();
  if (whole) {
    for (const Thread& thread : cluster.threads) whole &= thread.returned;
    if (!whole) report_who_waits();
  }
  if (whole) {
    end_cluster(cluster, launch);
  } else {
    for (Thread& thread : cluster.threads) abandon(*thread.fiber);
  }
  return whole;
}

}  // namespace

cudaError_t run(const Launch& launch, const void* kernel, Body body, const void* context, size_t bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  begin_reports(kernel);
  if (const cudaError_t error = check(launch, kernel); error != cudaSuccess) return error;
  Running& all = running();
  all.launch = launch;
  all.body = body;
  all.context = context;
  gridDim = dim3(launch.blocks);
  blockDim = dim3(launch.threads);
  shape(all.cluster, launch);
  begin_watching();
  begin_writes(context, bytes, launch.dependent);

  std::vector<unsigned> order(launch.blocks / launch.cluster);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_word() % i]);
  for (const unsigned number : order)
    if (!run_one(all.cluster, launch, number * launch.cluster)) break;

  end_writes();
  check_watched();
  return reports_of_launch() == 0 ? cudaSuccess : cudaErrorLaunchFailure;
}

Launch last_launch() { return running().launch; }

void check_returned(const Thread& thread) {
  if (thread.cluster_waits != thread.block->arrivals)
    report("barrier", &thread, nullptr, "returned after cluster_arrive without cluster_wait");
  if (thread.copies.empty()) return;
  report("pending", &thread, thread.copies.front().place,
         "returned with " + std::to_string(thread.copies.size()) + " copies that no wait_for_copies covers");
}

}  // namespace pygen::cuda::host
