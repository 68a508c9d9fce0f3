#include "runtime/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

// Null where AddressSanitizer is not in the process.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}

#if PYGEN_SWITCH_IN_ASSEMBLY
// Pushes what the System V ABI lets a callee keep, and goes on where the other stack pushed the same.
extern "C" void pygen_switch_stack(void** save, void* to);
asm(R"(
.text
.type pygen_switch_stack, @function
.hidden pygen_switch_stack
.globl pygen_switch_stack
pygen_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pygen_switch_stack, . - pygen_switch_stack
)");
#endif

namespace pygen::cuda::host {
namespace {

// Room for a report of a sanitizer; pages that no kernel touches cost nothing.
constexpr size_t kStackBytes = 256 * 1024;

Fiber* left = nullptr;

void* new_stack() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory) + guard;
}

void arrived(void* sanitizer_stack) {
  const void* bottom = nullptr;
  size_t size = 0;
  if (__sanitizer_finish_switch_fiber == nullptr) return;
  __sanitizer_finish_switch_fiber(sanitizer_stack, &bottom, &size);
  left->bottom = const_cast<void*>(bottom);
  left->size = size;
}

}  // namespace

void entered() { arrived(nullptr); }

void prepare(Fiber& fiber, Entry entry) {
  if (fiber.bottom == nullptr) {
    fiber.bottom = new_stack();
    fiber.size = kStackBytes;
  }
#if PYGEN_SWITCH_IN_ASSEMBLY
  // Six registers, the address that `ret` takes, and the return address of the entry: none, where a backtrace ends. It
  // lies 8 past a multiple of 16, as after a call.
  constexpr int kRegisters = 6;
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.bottom) + fiber.size) - 1;
  top[0] = nullptr;
  top[-1] = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kRegisters; ++i) top[-2 - i] = nullptr;
  fiber.stack_pointer = top - 1 - kRegisters;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.bottom;
  fiber.context.uc_stack.ss_size = fiber.size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

void switch_fiber(Fiber& from, Fiber& to, bool leaves_for_good) {
  if (__sanitizer_start_switch_fiber != nullptr)
    __sanitizer_start_switch_fiber(leaves_for_good ? nullptr : &from.sanitizer_stack, to.bottom, to.size);
  left = &from;
#if PYGEN_SWITCH_IN_ASSEMBLY
  pygen_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrived(from.sanitizer_stack);
}

void abandon(Fiber& fiber) {
  fiber.sanitizer_stack = nullptr;
  if (__asan_unpoison_memory_region != nullptr) __asan_unpoison_memory_region(fiber.bottom, fiber.size);
}

}  // namespace pygen::cuda::host
