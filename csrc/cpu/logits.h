// Logits of any dtype as float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/sample_params.h"
#include "cpu/vec.h"

namespace pygen::cpu::PYGEN_ISA {

// IEEE half to float without hardware help; exact for every input, subnormals and NaN included.
PYGEN_INLINE float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
  const uint32_t exponent = magnitude & 0x0F800000u;
  float value;
  uint32_t bits = magnitude + (static_cast<uint32_t>(127 - 15) << 23);
  if (exponent == 0x0F800000u) {  // inf or NaN
    bits += static_cast<uint32_t>(128 - 16) << 23;
    std::memcpy(&value, &bits, 4);
  } else if (exponent == 0) {  // zero or subnormal: 2^-14 too much was added with the implicit one
    bits += 1u << 23;
    std::memcpy(&value, &bits, 4);
    value -= 0x1p-14f;
  } else {
    std::memcpy(&value, &bits, 4);
  }
  return (half & 0x8000) != 0 ? -value : value;
}

PYGEN_INLINE F32 load_half(const uint16_t* from) {
  F32 out;
  for (int p = 0; p < kParts; ++p) {
    const uint16_t* at = from + p * kNativeLanes;
#if defined(__AVX512F__)
    out.part[p] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
#elif defined(__F16C__)
    out.part[p] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#else
    for (int i = 0; i < kNativeLanes; ++i) out.part[p][i] = half_to_float(at[i]);
#endif
  }
  return out;
}

PYGEN_INLINE F32 load_bfloat(const uint16_t* from) {
  U32 out;
  for (int p = 0; p < kParts; ++p) {
    typedef uint16_t Narrow __attribute__((vector_size(kNativeLanes * 2)));
    Narrow narrow;
    std::memcpy(&narrow, from + p * kNativeLanes, sizeof(narrow));
    out.part[p] = __builtin_convertvector(narrow, U32::Native) << 16;
  }
  return bit_cast<float>(out);
}

// Sixteen logits of any dtype as floats.
template <DType kDType>
PYGEN_INLINE F32 load_logits(const void* logits, int64_t at) {
  if constexpr (kDType == DType::kFloat32) return load(static_cast<const float*>(logits) + at);
  if constexpr (kDType == DType::kFloat16) return load_half(static_cast<const uint16_t*>(logits) + at);
  if constexpr (kDType == DType::kBFloat16) return load_bfloat(static_cast<const uint16_t*>(logits) + at);
}

}  // namespace pygen::cpu::PYGEN_ISA
