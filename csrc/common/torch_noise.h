// The noise behind torch's `exponential_` on a CUDA device, element by element: what `torch.multinomial` draws from.
//
// Of a contiguous float32 tensor of `numel` elements, element n belongs to thread n % T of torch's launch of T threads
// and is its draw number q = n / T; four draws share a Philox block. So its word is word q % 4 of Philox4x32-10 at
// counter (offset / 4 + q / 4, thread), two 64-bit numbers, under the generator's seed.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "common/philox.h"

namespace pygen {

struct TorchCudaNoise {
  uint64_t seed = 0;
  uint64_t offset = 0;
  // On the device: {seed, offset}, read instead of the two above; the kernel advances the offset. Or null.
  uint64_t* generator = nullptr;
  int64_t threads = 0;    // T
  int64_t increment = 0;  // what a draw of the whole tensor adds to the offset
};

constexpr int64_t kTorchBlock = 256;
constexpr int64_t kTorchUnroll = 4;

// Fills `threads` and `increment` as torch's launch on a device with these limits has them.
inline void set_torch_launch(TorchCudaNoise& noise, int64_t numel, int64_t multiprocessors,
                             int64_t threads_per_multiprocessor) {
  const int64_t wanted = (numel + kTorchBlock - 1) / kTorchBlock;
  const int64_t max_blocks = multiprocessors * (threads_per_multiprocessor / kTorchBlock);
  noise.threads = (wanted < max_blocks ? wanted : max_blocks) * kTorchBlock;
  const int64_t per_round = kTorchUnroll * noise.threads;
  noise.increment = per_round == 0 ? 0 : kTorchUnroll * ((numel + per_round - 1) / per_round);
}

PYGEN_HOST_DEVICE uint32_t torch_cuda_word(const TorchCudaNoise& noise, uint64_t seed, uint64_t offset, int64_t n) {
  const uint64_t threads = static_cast<uint64_t>(noise.threads);
  const uint64_t draw = static_cast<uint64_t>(n) / threads, thread = static_cast<uint64_t>(n) % threads;
  const uint64_t position = offset / kTorchUnroll + draw / kTorchUnroll;
  return philox_word(static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                     static_cast<uint32_t>(thread), static_cast<uint32_t>(thread >> 32), seed,
                     static_cast<uint32_t>(draw));
}

// E = -ln u with u = word * 2^-32 + 2^-33; where u rounds to 1, half an epsilon. torch takes the fast logarithm.
PYGEN_HOST_DEVICE float torch_cuda_exponential(uint32_t word) {
  const float u = static_cast<float>(word) * 0x1p-32f + 0x1p-33f;
  if (u >= 1.0f - 0x1p-24f) return 0x1p-24f;
#if defined(__CUDA_ARCH__)
  return -__logf(u);
#else
  return -std::log(u);
#endif
}

}  // namespace pygen
