// How far a bound of the exponential race, computed in float32, may be from the exact value.
#pragma once

namespace pygen {

// The value is score - ln E. Absolute part: the bound of ln E rounds an integer of 30 bits to 24 and a constant near
// 110, 1e-5 together. Relative part: dividing by the temperature, subtracting ln E and comparing are four roundings of
// 6e-8, each of a number below |value| + 32, as |ln E| < 32 for both generators. Both constants leave a margin of 10 or
// more, enough for any noise that a caller gives (|ln E| < 104).
constexpr double kBoundError = 1e-4;
constexpr double kRelativeBoundError = 4e-6;
constexpr double kMaxLogNoise = 32.0;

}  // namespace pygen
