// The ends of float32.
#pragma once

namespace pygen::cuda {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLowestFloat = -3.402823466e38f;

}  // namespace pygen::cuda
