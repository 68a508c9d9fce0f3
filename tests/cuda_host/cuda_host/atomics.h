// Atomic operations on global memory; only the types that CUDA has. Each is a place where other threads may go ahead.
#pragma once

namespace pygen::cuda::host {

// Now and then lets other threads run, so that an order that atomics do not give is not given.
void preempt();

template <typename T, typename Change>
inline T atomically(T* p, const Change& change) {
  preempt();
  const T old = *p;
  *p = change(old);
  return old;
}

template <typename T>
inline T wrapping_sum(T a, T b) {
  if constexpr (T(0.5) != T(0)) {
    return a + b;
  } else {
    return static_cast<T>(static_cast<unsigned long long>(a) + static_cast<unsigned long long>(b));
  }
}

}  // namespace pygen::cuda::host

#define PYGEN_ATOMIC(name, type, formula)                                               \
  inline type name(type* p, type value) {                                               \
    return pygen::cuda::host::atomically(p, [=](type old) -> type { return formula; }); \
  }
#define PYGEN_FOR_TYPES_3(name, formula) \
  PYGEN_ATOMIC(name, int, formula)       \
  PYGEN_ATOMIC(name, unsigned, formula)  \
  PYGEN_ATOMIC(name, unsigned long long, formula)

PYGEN_FOR_TYPES_3(atomicAdd, pygen::cuda::host::wrapping_sum(old, value))
PYGEN_ATOMIC(atomicAdd, float, old + value)
PYGEN_ATOMIC(atomicAdd, double, old + value)
PYGEN_ATOMIC(atomicSub, int, pygen::cuda::host::wrapping_sum(old, static_cast<int>(0u - static_cast<unsigned>(value))))
PYGEN_ATOMIC(atomicSub, unsigned, old - value)
PYGEN_FOR_TYPES_3(atomicAnd, old& value)
PYGEN_FOR_TYPES_3(atomicOr, old | value)
PYGEN_FOR_TYPES_3(atomicXor, old ^ value)
PYGEN_FOR_TYPES_3(atomicMin, value < old ? value : old)
PYGEN_ATOMIC(atomicMin, long long, value < old ? value : old)
PYGEN_FOR_TYPES_3(atomicMax, old < value ? value : old)
PYGEN_ATOMIC(atomicMax, long long, old < value ? value : old)
PYGEN_FOR_TYPES_3(atomicExch, (static_cast<void>(old), value))
PYGEN_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
PYGEN_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
#undef PYGEN_FOR_TYPES_3
#undef PYGEN_ATOMIC

#define PYGEN_ATOMIC_CAS(type)                                                                                \
  inline type atomicCAS(type* p, type expected, type value) {                                                 \
    return pygen::cuda::host::atomically(p, [=](type old) -> type { return old == expected ? value : old; }); \
  }
PYGEN_ATOMIC_CAS(int)
PYGEN_ATOMIC_CAS(unsigned)
PYGEN_ATOMIC_CAS(unsigned short)
PYGEN_ATOMIC_CAS(unsigned long long)
#undef PYGEN_ATOMIC_CAS
