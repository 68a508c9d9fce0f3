// Loads of logits, dependent launches, and the launch itself.
#pragma once

#include <tuple>
#include <type_traits>

#include "cuda/kernel_limits.h"
#include "cuda_host/functions.h"
#include "cuda_host/types.h"

namespace pygen::cuda {

struct Launch {
  unsigned blocks = 1;
  unsigned threads = 1;
  unsigned cluster = 1;
  unsigned shared = 0;
  bool dependent = false;
  cudaStream_t stream = nullptr;
};

namespace host {

void note_load(const void* p, unsigned bytes);
void wait_for_previous();
float half_to_float(uint16_t bits);

using Body = void (*)(const void* context);
// Runs `body(context)` once per thread; the context has `bytes`. `kernel` is only the address whose name reports carry.
cudaError_t run(const Launch& launch, const void* kernel, Body body, const void* context, size_t bytes);
Launch last_launch();

}  // namespace host

PYGEN_FORWARD uint4 load_vector(const void* p) {
  host::note_load(p, 16);
  uint4 v;
  __builtin_memcpy(&v, p, 16);
  return v;
}
template <typename T>
PYGEN_FORWARD T load_scalar(const T* p) {
  host::note_load(p, sizeof(T));
  return *p;
}

PYGEN_FORWARD float float_from_half_bits(uint16_t bits) { return host::half_to_float(bits); }

inline float max_or_nan(float a, float b) { return a != a ? a : b != b || b > a ? b : a; }
uint32_t max_or_nan_of_halves(uint32_t a, uint32_t b);
uint32_t max_or_nan_of_bfloats(uint32_t a, uint32_t b);

template <unsigned kBytes>
inline uint32_t spread_signs(uint32_t word) {
  uint32_t spread = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned digit = kBytes >> 4 * i & 15u;
    static_assert(kBytes < 0x10000u, "four digits");
    if ((word >> (8 * (digit & 3) + 7) & 1u) != 0) spread |= 0xFFu << 8 * i;
  }
  return spread;
}

inline float exp2_about(float x) {
  const float power = exp2f(x);
  return power < 0x1p-126f ? 0.0f : power;
}

PYGEN_FORWARD void wait_for_previous_kernel() { host::wait_for_previous(); }
PYGEN_FORWARD void trigger_next_kernel() {}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::remove_cv_t<Parameters>...> parameters;
  };
  const Call call{kernel, {static_cast<Parameters>(arguments)...}};
  const host::Body body = [](const void* context) {
    const Call& one = *static_cast<const Call*>(context);
    std::apply(one.kernel, one.parameters);
  };
  // Where the device refuses it, `run` reports the launch.
  allow_shared(address_of(kernel), launch.shared);
  return host::run(launch, address_of(kernel), body, &call, sizeof(call));
}

}  // namespace pygen::cuda
