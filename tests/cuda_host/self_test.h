// Kernels for the runtime's own test: test_host.py says what has to come out of each.
#pragma once

#include <map>
#include <string>

#include "cuda/device.cuh"

namespace pygen::cuda::self_test {

struct Case {
  Launch launch;
  // out: kOutputs zeros; in: 3 i + 1 for i < kInputs.
  void (*kernel)(long long* out, unsigned* in);
  // Launched in front, one block of 32 threads.
  void (*previous)(long long* out, unsigned* in) = nullptr;
};
using Cases = std::map<std::string, Case>;

constexpr int kOutputs = 300;
constexpr int kInputs = 64;

const Cases& functions();
const Cases& mistakes();
// Of asynchronous copies.
const Cases& copies();
const Cases& mistaken_copies();

inline Launch one_block(unsigned threads, unsigned shared = 0) { return {1, threads, 1, shared, false, nullptr}; }
inline Launch one_cluster(unsigned blocks, unsigned shared = 0) { return {blocks, 32, blocks, shared, false, nullptr}; }

PYGEN_DEVICE int index() { return static_cast<int>(threadIdx.x); }

}  // namespace pygen::cuda::self_test
