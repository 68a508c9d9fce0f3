#include <pybind11/stl.h>
#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "common/reorder_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

// Of a tensor: pointer, heads, head_dim, element size, and the strides of rows, heads and positions.
using CacheLayout = std::array<int64_t, 7>;

std::vector<CacheTensor> cache_tensors(const std::vector<CacheLayout>& layouts) {
  std::vector<CacheTensor> tensors;
  for (const auto& [address, heads, head_dim, element_size, row_stride, head_stride, position_stride] : layouts)
    tensors.push_back({pointer<char>(static_cast<uintptr_t>(address)), heads, head_dim, element_size, row_stride,
                       head_stride, position_stride});
  return tensors;
}

ReorderParams reorder_params(const std::vector<CacheTensor>& tensors, int64_t rows, uintptr_t beam_idx, int64_t start,
                             uintptr_t starts, uintptr_t span, int64_t length) {
  ReorderParams params;
  params.rows = rows;
  params.length = length;
  params.start = {start, pointer<const int64_t>(starts)};
  params.span = pointer<const int64_t>(span);
  params.beam_idx = pointer<const int64_t>(beam_idx);
  params.tensors = tensors.data();
  params.num_tensors = static_cast<int64_t>(tensors.size());
  if (rows < 0 || (rows > 0 && beam_idx == 0)) throw std::invalid_argument("rows is negative or beam_idx is null");
  return params;
}

void reorder_cache(const std::vector<CacheLayout>& layouts, int64_t rows, uintptr_t beam_idx, int64_t start,
                   uintptr_t starts, uintptr_t span, int64_t length, int threads) {
  const std::vector<CacheTensor> tensors = cache_tensors(layouts);
  ReorderParams params = reorder_params(tensors, rows, beam_idx, start, starts, span, length);
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  cpu::implementation().reorder_cache(params);
}

#if PYGEN_CUDA
void launch_reorder_cache(int ordinal, uintptr_t stream, const std::vector<CacheLayout>& layouts, int64_t rows,
                          uintptr_t beam_idx, int64_t start, uintptr_t starts, uintptr_t span, int64_t length) {
  const std::vector<CacheTensor> tensors = cache_tensors(layouts);
  check_launch(cuda::reorder_cache(reorder_params(tensors, rows, beam_idx, start, starts, span, length),
                                   {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}
#endif

}  // namespace

void bind_reorder_cache(py::module_& m) {
  m.def("reorder_cache", &reorder_cache);
#if PYGEN_CUDA
  m.def("launch_reorder_cache", &launch_reorder_cache);
#endif
}

}  // namespace pygen::bindings
