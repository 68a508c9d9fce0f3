// OpenMP when there is something to share, a plain loop otherwise.
#pragma once

#include <cstdint>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

// Below this many scores a thread costs more to wake than it saves.
constexpr int64_t kScoresPerThread = 16384;

// An exception that leaves a parallel region ends the process. Kernels only throw std::bad_alloc, so the caller's
// thread throws it once all threads are done.
class Failures {
 public:
  template <typename Body>
  PYGEN_INLINE void guard(const Body& body) {
    try {
      body();
    } catch (...) {
      __atomic_store_n(&any_, true, __ATOMIC_RELAXED);
    }
  }
  void rethrow() const {
    if (any_) throw std::bad_alloc();
  }

 private:
  bool any_ = false;
};

// body(begin, end, part) on `parts` equal stretches of [0, count).
template <typename Body>
PYGEN_INLINE void parallel_parts(int64_t count, int parts, const Body& body) {
  if (parts <= 1) {
    body(int64_t{0}, count, 0);
    return;
  }
  Failures failures;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int part = 0; part < parts; ++part)
    failures.guard([&] { body(count * part / parts, count * (part + 1) / parts, part); });
  failures.rethrow();
}

// body(row) for every row; rows differ in cost, so threads take the next free one.
template <typename Body>
PYGEN_INLINE void parallel_rows(int64_t rows, int threads, const Body& body) {
  if (threads <= 1) {
    for (int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
  Failures failures;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t row = 0; row < rows; ++row) failures.guard([&] { body(row); });
  failures.rethrow();
}

// How the threads are used: over rows, or inside each row when there are fewer rows than threads.
struct Split {
  int over_rows;
  int in_row;
};

PYGEN_INLINE Split split_threads(int64_t rows, int64_t vocab_size, int threads) {
  if (rows >= threads) {
    const int64_t useful = rows * vocab_size / kScoresPerThread + 1;
    return {static_cast<int>(useful < threads ? useful : threads), 1};
  }
  const int64_t useful = vocab_size / kScoresPerThread + 1;
  return {1, static_cast<int>(useful < threads ? useful : threads)};
}

}  // namespace pygen::cpu::PYGEN_ISA
