#include "runtime/device.h"

#include "cuda_host/device.h"

namespace pygen::cuda {
namespace host {
namespace {

Device& device() {
  // An H100.
  static Device one{9, 0, 132, 2048, 232448};
  return one;
}

}  // namespace

const Device& current_device() { return device(); }
void set_device(const Device& other) { device() = other; }

float half_to_float(uint16_t bits) {
  __extension__ using Half = _Float16;
  return static_cast<float>(same_bits<Half>(bits));
}

}  // namespace host

Error device_of(int, Device& device) {
  device = host::current_device();
  return cudaSuccess;
}

const char* error_text(Error error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNotSupported: return "operation not supported: this op was not built";
    case cudaErrorLaunchFailure: return "the host runtime reported failures of the kernel";
    case cudaErrorInvalidClusterSize: return "invalid cluster size";
    default: return "unrecognized error code";
  }
}

}  // namespace pygen::cuda
