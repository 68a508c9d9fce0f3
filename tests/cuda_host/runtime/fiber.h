// Stacks that take turns on one thread of the operating system; AddressSanitizer is told about every switch.
#pragma once

#include <cstddef>

// PYGEN_UCONTEXT asks for what other processors get.
#if defined(__x86_64__) && !defined(PYGEN_UCONTEXT)
#define PYGEN_SWITCH_IN_ASSEMBLY 1
#else
#define PYGEN_SWITCH_IN_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace pygen::cuda::host {

// One that was never prepared stands for the stack it is first left on.
struct Fiber {
#if PYGEN_SWITCH_IN_ASSEMBLY
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* bottom = nullptr;
  size_t size = 0;
  void* sanitizer_stack = nullptr;
};

using Entry = void (*)();

// The next switch to `fiber` begins `entry`, which must not return, at the top of its stack.
void prepare(Fiber& fiber, Entry entry);
// `leaves_for_good`: nobody goes on with `from` where it stands.
void switch_fiber(Fiber& from, Fiber& to, bool leaves_for_good = false);
// The first call of every entry.
void entered();
// Makes the stack of a fiber usable that was left in the middle of its work.
void abandon(Fiber& fiber);

}  // namespace pygen::cuda::host
