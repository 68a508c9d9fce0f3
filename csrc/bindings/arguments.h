// The arguments of the ops as Python gives them: integers by name, pointers among them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/sample_params.h"

namespace pygen::bindings {

namespace py = pybind11;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Reads keyword arguments by name; `finish` refuses those that were not read.
class Arguments {
 public:
  explicit Arguments(py::kwargs kwargs) : kwargs_(std::move(kwargs)) {}

  template <typename T>
  T take(const char* name) {
    PyObject* const given = PyDict_GetItemString(kwargs_.ptr(), name);
    if (given == nullptr) throw py::type_error(std::string("missing argument `") + name + "`");
    const T value = py::handle(given).cast<T>();
    PyDict_DelItemString(kwargs_.ptr(), name);
    return value;
  }
  template <typename T>
  T* take_pointer(const std::string& name) {
    return pointer<T>(take<uintptr_t>(name.c_str()));
  }
  template <typename T>
  Knob<T> take_knob(const std::string& name) {
    Knob<T> knob;
    knob.value = take<T>(name.c_str());
    knob.per_row = take_pointer<T>(name + "_ptr");
    return knob;
  }
  void finish() const {
    if (!kwargs_.empty()) throw py::type_error("unknown arguments: " + std::string(py::str(kwargs_.attr("keys")())));
  }

 private:
  py::kwargs kwargs_;
};

}  // namespace pygen::bindings
