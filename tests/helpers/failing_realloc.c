// Preloaded into a process: from a chosen one on, every reallocation that pygen's kernels ask for fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>

static long allowed = LONG_MAX;

void fail_after(long count) { __atomic_store_n(&allowed, count, __ATOMIC_SEQ_CST); }

// How many were refused.
long failures(void) {
  const long left = __atomic_load_n(&allowed, __ATOMIC_SEQ_CST);
  return left < 0 ? -left : 0;
}

void *realloc(void *address, size_t size) {
  static void *(*next)(void *, size_t);
  Dl_info caller;
  if (next == NULL) next = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
  if (dladdr(__builtin_return_address(0), &caller) != 0 && strstr(caller.dli_fname, "/pygen/_C") != NULL &&
      __atomic_sub_fetch(&allowed, 1, __ATOMIC_SEQ_CST) < 0)
    return NULL;
  return next(address, size);
}
