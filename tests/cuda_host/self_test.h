// Kernels that use every function of device.cuh once, and kernels with one planted mistake each.
#pragma once

#include <string>
#include <vector>

namespace pygen::cuda::self_test {

std::vector<std::string> names();
// Runs one: what it computed, for kernels without a mistake; std::out_of_range for an unknown name.
std::vector<long long> run(const std::string& name);

}  // namespace pygen::cuda::self_test
