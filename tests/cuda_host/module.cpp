// The Python module `_host`: what a test asks of the runtime. It lies in the same file as the module of the kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_host/device.h"
#include "runtime/device.h"
#include "runtime/loads.h"
#include "runtime/report.h"
#include "runtime/scheduler.h"

namespace py = pybind11;
namespace host = pygen::cuda::host;

namespace {

py::list failures() {
  py::list all;
  for (const host::Failure& failure : host::take_reports()) {
    py::dict one;
    one["kind"] = failure.kind;
    one["kernel"] = failure.kernel;
    one["block"] = failure.block;
    one["thread"] = failure.thread;
    one["text"] = failure.text;
    one["where"] = failure.where;
    one["count"] = failure.count;
    all.append(one);
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.def("take_failures", &failures);
  m.def("seed_order", &host::seed_order);
  m.def("set_device", [](int major, int minor, int multiprocessors, int threads, int shared) {
    host::set_device({major, minor, multiprocessors, threads, shared});
  });
  m.def("set_clusters", &host::set_clusters);
  m.def("asked", [] {
    const host::Asked asked = host::asked();
    return py::dict(py::arg("clusters") = asked.clusters, py::arg("shared") = asked.shared);
  });
  m.def("allow_in_threads", &host::allow_in_threads, py::call_guard<py::gil_scoped_release>());
  m.def("last_launch", [] {
    const pygen::cuda::Launch launch = host::last_launch();
    return py::dict(py::arg("blocks") = launch.blocks, py::arg("threads") = launch.threads,
                    py::arg("cluster") = launch.cluster, py::arg("shared") = launch.shared);
  });
  m.def("watch", [](const std::string& name, uintptr_t address, size_t bytes) {
    host::watch(name, reinterpret_cast<const void*>(address), bytes);
  });
  m.def("forget_watched", &host::forget_watched);
  m.def("loads", [](const std::string& name) {
    const host::LoadCount count = host::count_of(name);
    return py::make_tuple(count.loads, count.bytes);
  });
}
