// Which thread runs next: any of those that can, drawn at random, so that an order nobody asked for is not kept.
#pragma once

#include <cstdint>

namespace pygen::cuda::host {

struct Thread;

void seed_order(uint64_t seed);
uint64_t random_word();

// All threads of the cluster from their beginning, until every one returned or none can go on. False when the launch was
// given up.
bool run_cluster();

// The running thread waits in `what`, called from `place`, until somebody wakes it.
void suspend(const char* what, const void* place);
void wake(Thread& thread);
// Leaves the kernel for good.
[[noreturn]] void give_up();

}  // namespace pygen::cuda::host
