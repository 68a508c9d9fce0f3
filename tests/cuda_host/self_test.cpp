// The Python module `_self_test`.
#include "self_test.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

PYBIND11_MODULE(_self_test, m) {
  m.def("names", &pygen::cuda::self_test::names);
  m.def("run", &pygen::cuda::self_test::run);
}
