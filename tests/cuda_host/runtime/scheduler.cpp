#include "runtime/scheduler.h"

#include <cstdlib>
#include <utility>
#include <vector>

#include "runtime/previous.h"
#include "runtime/state.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace pygen::cuda::host {
namespace {

// One in so many atomics lets others run first.
constexpr uint64_t kPreemptOneIn = 8;

struct Scheduler {
  Fiber outside;
  std::vector<Thread*> ready;
  std::vector<Thread*> early;  // they wait for the kernels in front
  bool previous_done = false;
  uint64_t random = 0x9E3779B97F4A7C15u;
  bool given_up = false;
};

Scheduler& scheduler() {
  static Scheduler one;
  return one;
}

Thread* next_thread() {
  std::vector<Thread*>& ready = scheduler().ready;
  // The kernels in front end as late as they can.
  if (ready.empty() && !scheduler().early.empty()) {
    scheduler().previous_done = true;
    show_previous_writes();
    ready.swap(scheduler().early);
  }
  if (ready.empty()) return nullptr;
  std::swap(ready[random_word() % ready.size()], ready.back());
  Thread* thread = ready.back();
  ready.pop_back();
  return thread;
}

void become(Thread* thread) {
  running().thread = thread;
  if (thread == nullptr) return;
  threadIdx = {thread->index, 0, 0};
  blockIdx = {thread->block->index, 0, 0};
}

void leave(Thread& thread, bool for_good) {
  Thread* next = next_thread();
  if (next == &thread) return;
  become(next);
  switch_fiber(*thread.fiber, next != nullptr ? *next->fiber : scheduler().outside, for_good);
}

void entry() {
  entered();
  Running& all = running();
  all.body(all.context);
  Thread& thread = current();
  check_returned(thread);
  thread.returned = true;
  leave(thread, true);
  std::abort();
}

}  // namespace

Running& running() {
  static Running one;
  return one;
}

void seed_order(uint64_t seed) { scheduler().random = seed * 2 + 0x9E3779B97F4A7C15u; }

// xorshift64* (Vigna 2016).
uint64_t random_word() {
  uint64_t& x = scheduler().random;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  return (x * 0x2545F4914F6CDD1Du) >> 32;
}

bool run_cluster() {
  Scheduler& all = scheduler();
  std::vector<Thread>& threads = running().cluster.threads;
  all.ready.clear();
  all.early.clear();
  all.previous_done = !running().launch.dependent;
  all.given_up = false;
  for (Thread& thread : threads) {
    prepare(*thread.fiber, entry);
    wake(thread);
  }
  Thread* first = next_thread();
  become(first);
  switch_fiber(all.outside, *first->fiber);
  return !all.given_up;
}

void suspend(const char* what, const void* place) {
  Thread& thread = current();
  thread.waits_in = what;
  thread.place = place;
  leave(thread, false);
  thread.waits_in = nullptr;
}

void wake(Thread& thread) { scheduler().ready.push_back(&thread); }

void wait_for_previous() {
  const void* place = __builtin_return_address(0);
  Thread& thread = current();
  if (!scheduler().previous_done) {
    scheduler().early.push_back(&thread);
    suspend("wait_for_previous_kernel", place);
  }
  thread.waited_for_previous = true;
}

void preempt() {
  if (random_word() % kPreemptOneIn != 0 || scheduler().ready.empty()) return;
  Thread& thread = current();
  wake(thread);
  leave(thread, false);
}

void give_up() {
  scheduler().ready.clear();
  scheduler().early.clear();
  scheduler().given_up = true;
  leave(current(), false);
  std::abort();
}

}  // namespace pygen::cuda::host
