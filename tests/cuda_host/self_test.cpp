// The Python module `_self_test`.
#include "self_test.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "runtime/loads.h"

namespace {

using namespace pygen::cuda;

self_test::Cases all() {
  self_test::Cases cases;
  for (const self_test::Cases* some :
       {&self_test::functions(), &self_test::mistakes(), &self_test::copies(), &self_test::mistaken_copies()})
    cases.insert(some->begin(), some->end());
  return cases;
}

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const auto& [name, one] : all()) result.push_back(name);
  return result;
}

// What the kernel wrote; then loads of `in`, their bytes, and the error of the launch.
std::vector<long long> run(const std::string& name) {
  const self_test::Case one = all().at(name);
  std::vector<long long> out(self_test::kOutputs, 0);
  std::vector<unsigned> in(self_test::kInputs);
  for (unsigned i = 0; i < in.size(); ++i) in[i] = 3 * i + 1;
  host::watch("in", in.data(), in.size() * sizeof(unsigned));
  if (one.previous != nullptr) launch_kernel(one.previous, self_test::one_block(32), out.data(), in.data());
  const cudaError_t error = launch_kernel(one.kernel, one.launch, out.data(), in.data());
  const host::LoadCount count = host::count_of("in");
  host::forget_watched();
  out.insert(out.end(), {static_cast<long long>(count.loads), static_cast<long long>(count.bytes), error});
  return out;
}

}  // namespace

PYBIND11_MODULE(_self_test, m) {
  m.def("names", &names);
  m.def("run", &run);
}
