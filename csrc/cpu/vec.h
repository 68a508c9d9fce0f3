// Sixteen lanes of 32 bits, the same on every instruction set: one AVX-512 register, two of AVX2, four of SSE2 or NEON.
// A fixed width fixes the order of every sum, so the instruction sets agree (see `fma` for the one exception).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#define PYGEN_INLINE inline __attribute__((always_inline))

namespace pygen::cpu::PYGEN_ISA {

constexpr int kLanes = 16;
#if defined(__AVX512F__)
constexpr int kNativeLanes = 16;
#elif defined(__AVX2__)
constexpr int kNativeLanes = 8;
#else
constexpr int kNativeLanes = 4;
#endif
constexpr int kParts = kLanes / kNativeLanes;

template <typename T>
struct Vec {
  typedef T Native __attribute__((vector_size(kNativeLanes * sizeof(T))));
  Native part[kParts];
};
using F32 = Vec<float>;
using I32 = Vec<int32_t>;
using U32 = Vec<uint32_t>;

#define PYGEN_BINARY(op)                                                 \
  template <typename T>                                                  \
  PYGEN_INLINE Vec<T> operator op(Vec<T> a, const Vec<T>& b) {           \
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] op b.part[p]; \
    return a;                                                            \
  }
PYGEN_BINARY(+)
PYGEN_BINARY(-)
PYGEN_BINARY(*)
PYGEN_BINARY(/)
PYGEN_BINARY(^)
PYGEN_BINARY(&)
PYGEN_BINARY(|)
#undef PYGEN_BINARY

template <typename T>
PYGEN_INLINE Vec<T> operator>>(Vec<T> a, int bits) {
  for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] >> bits;
  return a;
}

template <typename T>
PYGEN_INLINE Vec<T> operator<<(Vec<T> a, int bits) {
  for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] << bits;
  return a;
}

template <typename T>
PYGEN_INLINE Vec<T> broadcast(T value) {
  Vec<T> out;
  for (int p = 0; p < kParts; ++p) out.part[p] = value - typename Vec<T>::Native{};
  return out;
}

template <typename T>
PYGEN_INLINE Vec<T> load(const T* from) {
  Vec<T> out;
  // Register by register: GCC copies a larger structure through the stack.
  for (int p = 0; p < kParts; ++p) std::memcpy(&out.part[p], from + p * kNativeLanes, sizeof(out.part[p]));
  return out;
}

template <typename T>
PYGEN_INLINE void store(T* to, const Vec<T>& v) {
  for (int p = 0; p < kParts; ++p) std::memcpy(to + p * kNativeLanes, &v.part[p], sizeof(v.part[p]));
}

template <typename To, typename From>
PYGEN_INLINE Vec<To> bit_cast(const Vec<From>& v) {
  Vec<To> out;
  for (int p = 0; p < kParts; ++p) out.part[p] = reinterpret_cast<typename Vec<To>::Native>(v.part[p]);
  return out;
}

// a * b + c, rounded once. Without the instruction it goes through double, which differs once in about 2^29.
PYGEN_INLINE F32 fma(F32 a, const F32& b, const F32& c) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    a.part[p] = _mm512_fmadd_ps(a.part[p], b.part[p], c.part[p]);
#elif defined(__FMA__)
    a.part[p] = _mm256_fmadd_ps(a.part[p], b.part[p], c.part[p]);
#else
    for (int i = 0; i < kNativeLanes; ++i)
      a.part[p][i] = static_cast<float>(static_cast<double>(a.part[p][i]) * b.part[p][i] + c.part[p][i]);
#endif
  }
  return a;
}

PYGEN_INLINE U32 min(U32 a, const U32& b) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    a.part[p] = reinterpret_cast<U32::Native>(
        _mm512_min_epu32(reinterpret_cast<__m512i>(a.part[p]), reinterpret_cast<__m512i>(b.part[p])));
#elif defined(__AVX2__)
    a.part[p] = reinterpret_cast<U32::Native>(
        _mm256_min_epu32(reinterpret_cast<__m256i>(a.part[p]), reinterpret_cast<__m256i>(b.part[p])));
#else
    a.part[p] = a.part[p] < b.part[p] ? a.part[p] : b.part[p];
#endif
  }
  return a;
}

PYGEN_INLINE uint32_t reduce_min(const U32& v) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_epu32(reinterpret_cast<__m512i>(v.part[0]));
#else
  auto least = v.part[0];
  for (int p = 1; p < kParts; ++p) least = least < v.part[p] ? least : v.part[p];
  uint32_t smallest = least[0];
  for (int i = 1; i < kNativeLanes; ++i) smallest = least[i] < smallest ? least[i] : smallest;
  return smallest;
#endif
}

PYGEN_INLINE F32 to_float(const I32& v) {
  F32 out;
  for (int p = 0; p < kParts; ++p) out.part[p] = __builtin_convertvector(v.part[p], F32::Native);
  return out;
}

// The larger lane; `b` where the two do not compare.
PYGEN_INLINE F32 max(F32 a, const F32& b) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    a.part[p] = _mm512_max_ps(a.part[p], b.part[p]);
#elif defined(__AVX2__)
    a.part[p] = _mm256_max_ps(a.part[p], b.part[p]);
#elif defined(__SSE2__)
    a.part[p] = _mm_max_ps(a.part[p], b.part[p]);
#else
    a.part[p] = a.part[p] > b.part[p] ? a.part[p] : b.part[p];
#endif
  }
  return a;
}

// Comparisons give one bit a lane, lane 0 lowest.
using Bits = uint32_t;

PYGEN_INLINE Bits sign_bits(const I32& v) {
  Bits bits = 0;
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    bits |= static_cast<Bits>(_mm512_movepi32_mask(reinterpret_cast<__m512i>(v.part[p])));
#elif defined(__AVX2__)
    bits |= static_cast<Bits>(_mm256_movemask_ps(reinterpret_cast<__m256>(v.part[p]))) << (p * kNativeLanes);
#elif defined(__SSE2__)
    bits |= static_cast<Bits>(_mm_movemask_ps(reinterpret_cast<__m128>(v.part[p]))) << (p * kNativeLanes);
#else
    for (int i = 0; i < kNativeLanes; ++i) bits |= static_cast<Bits>(v.part[p][i] < 0) << (p * kNativeLanes + i);
#endif
  }
  return bits;
}

#if defined(__AVX512F__)
#define PYGEN_COMPARE(name, op, predicate)                                                          \
  PYGEN_INLINE Bits name(const F32& a, const F32& b) {                                              \
    return static_cast<Bits>(_mm512_cmp_ps_mask(a.part[0], b.part[0], predicate));                  \
  }                                                                                                 \
  PYGEN_INLINE F32 where_##name(const F32& a, const F32& b, const F32& v) {                         \
    return {{_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.part[0], b.part[0], predicate), v.part[0])}}; \
  }
#else
#define PYGEN_COMPARE(name, op, predicate)                                                     \
  PYGEN_INLINE I32 name##_lanes(const F32& a, const F32& b) {                                  \
    I32 out;                                                                                   \
    for (int p = 0; p < kParts; ++p) out.part[p] = a.part[p] op b.part[p];                     \
    return out;                                                                                \
  }                                                                                            \
  PYGEN_INLINE Bits name(const F32& a, const F32& b) { return sign_bits(name##_lanes(a, b)); } \
  PYGEN_INLINE F32 where_##name(const F32& a, const F32& b, const F32& v) {                    \
    return bit_cast<float>(bit_cast<int32_t>(v) & name##_lanes(a, b));                         \
  }
#endif
// name(a, b): the bits of the lanes where it holds. where_name(a, b, v): v there, +0 elsewhere.
PYGEN_COMPARE(gt, >, _CMP_GT_OQ)
PYGEN_COMPARE(ge, >=, _CMP_GE_OQ)
#undef PYGEN_COMPARE

// Lanes in which a or b is NaN.
PYGEN_INLINE Bits unordered(const F32& a, const F32& b) {
#if defined(__AVX512F__)
  return static_cast<Bits>(_mm512_cmp_ps_mask(a.part[0], b.part[0], _CMP_UNORD_Q));
#else
  I32 out;
  for (int p = 0; p < kParts; ++p) out.part[p] = (a.part[p] != a.part[p]) | (b.part[p] != b.part[p]);
  return sign_bits(out);
#endif
}

// a where the bit is set, b elsewhere.
PYGEN_INLINE F32 select(Bits bits, const F32& a, const F32& b) {
#if defined(__AVX512F__)
  return {{_mm512_mask_blend_ps(static_cast<__mmask16>(bits), b.part[0], a.part[0])}};
#else
  float chosen[kLanes], other[kLanes];
  store(chosen, a);
  store(other, b);
  for (int i = 0; i < kLanes; ++i) chosen[i] = (bits >> i & 1) != 0 ? chosen[i] : other[i];
  return load(chosen);
#endif
}

// Writes the lanes of `bits` one after the other and returns how many; up to 16 floats behind `to` may be overwritten.
PYGEN_INLINE int compress_store(float* to, const F32& v, Bits bits) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v.part[0]));
  return __builtin_popcount(bits);
#else
  float lanes[kLanes];
  store(lanes, v);
  int count = 0;
  for (; bits != 0; bits &= bits - 1) to[count++] = lanes[__builtin_ctz(bits)];
  return count;
#endif
}

PYGEN_INLINE float reduce_max(const F32& v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v.part[0]);
#else
  auto lanes = v.part[0];
  for (int p = 1; p < kParts; ++p) lanes = lanes > v.part[p] ? lanes : v.part[p];
  float largest = lanes[0];
  for (int i = 1; i < kNativeLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
#endif
}

// Halves added to halves, the same order on every instruction set.
PYGEN_INLINE float reduce_add(const F32& v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v.part[0]);
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

// Adds up floats in double, lane by lane, so that the result does not depend on the instruction set.
class Sum {
 public:
  PYGEN_INLINE void add(const F32& v) {
    for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
      lanes_[2 * p] += _mm512_cvtps_pd(_mm512_castps512_ps256(v.part[p]));
      lanes_[2 * p + 1] += _mm512_cvtps_pd(_mm512_extractf32x8_ps(v.part[p], 1));
#elif defined(__AVX2__)
      lanes_[2 * p] += _mm256_cvtps_pd(_mm256_castps256_ps128(v.part[p]));
      lanes_[2 * p + 1] += _mm256_cvtps_pd(_mm256_extractf128_ps(v.part[p], 1));
#else
      for (int i = 0; i < kNativeLanes; ++i)
        lanes_[2 * p + 2 * i / kNativeLanes][i % (kNativeLanes / 2)] += v.part[p][i];
#endif
    }
  }

  double total() const {
    double sums[kLanes];
    std::memcpy(sums, lanes_, sizeof(sums));
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
  }

 private:
  typedef double Native __attribute__((vector_size(kNativeLanes / 2 * sizeof(double))));
  Native lanes_[2 * kParts] = {};
};

// High and low halves of the lanes' 64-bit products with one multiplier.
PYGEN_INLINE void multiply_wide(const U32& a, uint32_t multiplier, U32& high, U32& low) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    const __m512i m = _mm512_set1_epi32(static_cast<int>(multiplier));
    const __m512i v = reinterpret_cast<__m512i>(a.part[p]);
    const __m512i even = _mm512_mul_epu32(v, m);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), m);
    // The shuffles move a half over within its 64 bits and merge in the same instruction.
    high.part[p] = reinterpret_cast<U32::Native>(_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB));
    low.part[p] = reinterpret_cast<U32::Native>(_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA));
#elif defined(__AVX2__)
    const __m256i m = _mm256_set1_epi32(static_cast<int>(multiplier));
    const __m256i v = reinterpret_cast<__m256i>(a.part[p]);
    const __m256i even = _mm256_mul_epu32(v, m);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
    high.part[p] = reinterpret_cast<U32::Native>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
    low.part[p] = reinterpret_cast<U32::Native>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
    for (int i = 0; i < kNativeLanes; ++i) {
      const uint64_t product = static_cast<uint64_t>(a.part[p][i]) * multiplier;
      high.part[p][i] = static_cast<uint32_t>(product >> 32);
      low.part[p][i] = static_cast<uint32_t>(product);
    }
#endif
  }
}

// 4x4 transpose inside every group of four lanes: out[j] group g = (a, b, c, d) of lane 4 g + j.
PYGEN_INLINE void transpose_groups(const U32& a, const U32& b, const U32& c, const U32& d, U32 out[4]) {
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    const __m512i va = reinterpret_cast<__m512i>(a.part[p]), vb = reinterpret_cast<__m512i>(b.part[p]);
    const __m512i vc = reinterpret_cast<__m512i>(c.part[p]), vd = reinterpret_cast<__m512i>(d.part[p]);
    const __m512i ab_low = _mm512_unpacklo_epi32(va, vb), ab_high = _mm512_unpackhi_epi32(va, vb);
    const __m512i cd_low = _mm512_unpacklo_epi32(vc, vd), cd_high = _mm512_unpackhi_epi32(vc, vd);
    out[0].part[p] = reinterpret_cast<U32::Native>(_mm512_unpacklo_epi64(ab_low, cd_low));
    out[1].part[p] = reinterpret_cast<U32::Native>(_mm512_unpackhi_epi64(ab_low, cd_low));
    out[2].part[p] = reinterpret_cast<U32::Native>(_mm512_unpacklo_epi64(ab_high, cd_high));
    out[3].part[p] = reinterpret_cast<U32::Native>(_mm512_unpackhi_epi64(ab_high, cd_high));
#elif defined(__AVX2__)
    const __m256i va = reinterpret_cast<__m256i>(a.part[p]), vb = reinterpret_cast<__m256i>(b.part[p]);
    const __m256i vc = reinterpret_cast<__m256i>(c.part[p]), vd = reinterpret_cast<__m256i>(d.part[p]);
    const __m256i ab_low = _mm256_unpacklo_epi32(va, vb), ab_high = _mm256_unpackhi_epi32(va, vb);
    const __m256i cd_low = _mm256_unpacklo_epi32(vc, vd), cd_high = _mm256_unpackhi_epi32(vc, vd);
    out[0].part[p] = reinterpret_cast<U32::Native>(_mm256_unpacklo_epi64(ab_low, cd_low));
    out[1].part[p] = reinterpret_cast<U32::Native>(_mm256_unpackhi_epi64(ab_low, cd_low));
    out[2].part[p] = reinterpret_cast<U32::Native>(_mm256_unpacklo_epi64(ab_high, cd_high));
    out[3].part[p] = reinterpret_cast<U32::Native>(_mm256_unpackhi_epi64(ab_high, cd_high));
#else
    for (int j = 0; j < 4; ++j) out[j].part[p] = U32::Native{a.part[p][j], b.part[p][j], c.part[p][j], d.part[p][j]};
#endif
  }
}

// Lanes 0, 2, 4, ... of the 32 that a and b hold.
PYGEN_INLINE U32 even_lanes(const U32& a, const U32& b) {
#if defined(__AVX512F__)
  const __m512i index = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return {{reinterpret_cast<U32::Native>(
      _mm512_permutex2var_epi32(reinterpret_cast<__m512i>(a.part[0]), index, reinterpret_cast<__m512i>(b.part[0])))}};
#else
  uint32_t in[2 * kLanes], out[kLanes];
  store(in, a);
  store(in + kLanes, b);
  for (int i = 0; i < kLanes; ++i) out[i] = in[2 * i];
  return load(out);
#endif
}

// e^x for x <= 0 within 2 ulp; exactly 0 below -87, where float32 ends, and at -inf. Cephes' polynomial.
PYGEN_INLINE F32 exp_nonpositive(const F32& x) {
  const F32 lowest = broadcast(-87.0f);
  const F32 clamped = max(x, lowest);
  const F32 magic =
      broadcast(0x1.8p23f);  // adding it rounds to an integer, left in the low bits; its own are above bit 9
  const F32 shifted = fma(clamped, broadcast(1.44269504088896341f), magic);
  const F32 n = shifted - magic;
  const F32 r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), clamped));
  F32 poly = broadcast(1.9875691500e-4f);
  poly = fma(poly, r, broadcast(1.3981999507e-3f));
  poly = fma(poly, r, broadcast(8.3334519073e-3f));
  poly = fma(poly, r, broadcast(4.1665795894e-2f));
  poly = fma(poly, r, broadcast(1.6666665459e-1f));
  poly = fma(poly, r, broadcast(5.0000001201e-1f));
  poly = fma(poly, r * r, r) + broadcast(1.0f);
  const I32 scale = bit_cast<int32_t>(shifted) << 23;
  const F32 value = bit_cast<float>(bit_cast<int32_t>(poly) + scale);
  return where_ge(x, lowest, value);
}

}  // namespace pygen::cpu::PYGEN_ISA
