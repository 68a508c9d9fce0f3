// e^x for x <= 0, the same bits everywhere: a scalar of cpu/vec.h's exp_nonpositive.
#pragma once

#include <cmath>

#include "common/ordered_key.h"

namespace pygen {

// Within 2 ulp; exactly 0 below -87 and at -inf. Cephes' polynomial.
PYGEN_HOST_DEVICE float exp_nonpositive(float x) {
  if (!(x >= -87.0f)) return 0.0f;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, left in the low bits; its own are above bit 9
  const float shifted = fmaf(x, 1.44269504088896341f, kRound);
  const float n = shifted - kRound;
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
  float poly = 1.9875691500e-4f;
  poly = fmaf(poly, r, 1.3981999507e-3f);
  poly = fmaf(poly, r, 8.3334519073e-3f);
  poly = fmaf(poly, r, 4.1665795894e-2f);
  poly = fmaf(poly, r, 1.6666665459e-1f);
  poly = fmaf(poly, r, 5.0000001201e-1f);
  poly = fmaf(poly, r * r, r) + 1.0f;
  return float_of(bits_of(poly) + (bits_of(shifted) << 23));
}

}  // namespace pygen
