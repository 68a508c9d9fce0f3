// CUDA's functions of one thread: bits, conversions, arithmetic, loads and stores with a cache hint, fences.
#pragma once

#include <math.h>

#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace pygen::cuda::host {

template <typename To, typename From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Saturates, and NaN is 0, as the device's conversions do.
template <typename To, typename From>
inline To converted(From value) {
  if (value != value) return 0;
  if (value < static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (value >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(value);
}

}  // namespace pygen::cuda::host

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const unsigned s = shift & 31;
  return s == 0 ? high : high << s | low >> (32 - s);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const unsigned s = shift & 31;
  return s == 0 ? low : low >> s | high << (32 - s);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Product = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Product>(a) * b >> 64);
}

inline unsigned __float_as_uint(float x) { return pygen::cuda::host::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return pygen::cuda::host::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return pygen::cuda::host::same_bits<float>(x); }
inline float __int_as_float(int x) { return pygen::cuda::host::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return pygen::cuda::host::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return pygen::cuda::host::same_bits<double>(x); }

inline int __float2int_rz(float x) { return pygen::cuda::host::converted<int>(x); }
inline int __float2int_rn(float x) { return pygen::cuda::host::converted<int>(rintf(x)); }
inline int __float2int_rd(float x) { return pygen::cuda::host::converted<int>(floorf(x)); }
inline int __float2int_ru(float x) { return pygen::cuda::host::converted<int>(ceilf(x)); }
inline unsigned __float2uint_rz(float x) { return pygen::cuda::host::converted<unsigned>(x); }
inline unsigned __float2uint_rn(float x) { return pygen::cuda::host::converted<unsigned>(rintf(x)); }
inline unsigned __float2uint_rd(float x) { return pygen::cuda::host::converted<unsigned>(floorf(x)); }
inline long long __float2ll_rz(float x) { return pygen::cuda::host::converted<long long>(x); }
inline long long __float2ll_rn(float x) { return pygen::cuda::host::converted<long long>(rintf(x)); }
inline unsigned long long __float2ull_rz(float x) { return pygen::cuda::host::converted<unsigned long long>(x); }
inline unsigned long long __float2ull_rn(float x) { return pygen::cuda::host::converted<unsigned long long>(rintf(x)); }
inline unsigned long long __float2ull_rd(float x) {
  return pygen::cuda::host::converted<unsigned long long>(floorf(x));
}
inline unsigned long long __double2ull_rz(double x) { return pygen::cuda::host::converted<unsigned long long>(x); }
inline unsigned long long __double2ull_rn(double x) {
  return pygen::cuda::host::converted<unsigned long long>(rint(x));
}
inline long long __double2ll_rn(double x) { return pygen::cuda::host::converted<long long>(rint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

// glibc declares functions with these names for itself.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)

#define PYGEN_MIN_MAX(type)                                 \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
PYGEN_MIN_MAX(int)
PYGEN_MIN_MAX(unsigned)
PYGEN_MIN_MAX(long)
PYGEN_MIN_MAX(unsigned long)
PYGEN_MIN_MAX(long long)
PYGEN_MIN_MAX(unsigned long long)
#undef PYGEN_MIN_MAX
// Of a NaN and a number, the number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcg(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcs(const T* p) {
  return *p;
}
template <typename T>
inline void __stcg(T* p, T value) {
  *p = value;
}
template <typename T>
inline void __stcs(T* p, T value) {
  *p = value;
}

// Threads of the runtime take turns, so memory is in order by itself.
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { abort(); }
