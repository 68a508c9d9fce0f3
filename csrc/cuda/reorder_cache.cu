// reorder_cache: rows of key and value tensors take over the last positions of other rows, in place.
// Bytes: one read and one write of what moves.
//
// A thread owns one vector of a position, in all rows, so that its copies need no barrier. Every block copies the
// rows that no other row has to read any more, and so on. What is left in the end are cycles, of which a thread keeps
// one vector in a register.
#include "cuda/device.cuh"
#include "cuda/launchers.h"

namespace pygen::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 3;
constexpr int kTensorsPerLaunch = 64;
constexpr int kCopiesInFlight = 4;
constexpr int kWordBits = 32;

// A tensor as copies see it; strides in bytes.
struct Cache {
  char* data;
  int64_t row_stride;
  int64_t head_stride;
  int64_t position_stride;
  int heads;
  int vectors;  // per position
  int width;    // bytes of a vector
};

struct Pack {
  Cache caches[kTensorsPerLaunch];
  int count;
  int rows;
  int64_t length;
  Knob<int64_t> start;
  const int64_t* span;
  const int64_t* beam_idx;
};

PYGEN_DEVICE int lowest_bit(uint32_t word) { return __ffs(static_cast<int>(word)) - 1; }

// One bit per row.
class RowSet {
 public:
  PYGEN_DEVICE RowSet(SharedMemory& memory, int rows) : words_((rows + kWordBits - 1) / kWordBits) {
    bits_ = memory.take<uint32_t>(words_);
  }
  PYGEN_DEVICE int words() const { return words_; }
  PYGEN_DEVICE uint32_t word(int i) const { return bits_.get(i); }
  PYGEN_DEVICE void set_word(int i, uint32_t bits) const { bits_.set(i, bits); }
  PYGEN_DEVICE bool has(int row) const { return (bits_.get(row / kWordBits) >> (row % kWordBits) & 1u) != 0; }
  PYGEN_DEVICE void add(int row) const { bits_.bit_or(row / kWordBits, 1u << (row % kWordBits)); }
  PYGEN_DEVICE void clear() const {
    for (int i = threadIdx.x; i < words_; i += kThreads) bits_.set(i, 0);
  }
  // The first member from `row` on, or -1.
  PYGEN_DEVICE int next(int row) const {
    int i = row / kWordBits;
    if (i >= words_) return -1;
    uint32_t bits = bits_.get(i) & ~0u << (row % kWordBits);
    while (bits == 0) {
      if (++i >= words_) return -1;
      bits = bits_.get(i);
    }
    return i * kWordBits + lowest_bit(bits);
  }

 private:
  int words_;
  Shared<uint32_t> bits_;
};

class Moves {
 public:
  PYGEN_DEVICE Moves(const Pack& pack, SharedMemory& memory)
      : pack_(pack),
        offset_(pack.span != nullptr ? load_scalar(pack.span) : 0),
        end_(end_of(pack)),
        waiting_(memory, pack.rows),
        read_(memory, pack.rows),
        ready_(memory, pack.rows),
        first_(memory.take<uint64_t>(1)) {
    waiting_.clear();
    if (threadIdx.x == 0) first_.set(0, static_cast<uint64_t>(end_));
    __syncthreads();
    for (int row = threadIdx.x; row < pack.rows; row += kThreads) {
      if (source(row) == row || start(row) >= end_) continue;
      waiting_.add(row);
      first_.min(0, static_cast<uint64_t>(start(row)));
    }
    __syncthreads();
  }

  PYGEN_DEVICE int source(int row) const { return static_cast<int>(load_scalar(pack_.beam_idx + row)); }
  PYGEN_DEVICE int64_t start(int row) const {
    return offset_ + (pack_.start.per_row != nullptr ? load_scalar(pack_.start.per_row + row) : pack_.start.value);
  }
  // The first position that any row writes.
  PYGEN_DEVICE int64_t first() const { return static_cast<int64_t>(first_.get(0)); }
  // Behind the last one.
  PYGEN_DEVICE int64_t end() const { return end_; }
  // The rows to be written now.
  PYGEN_DEVICE const RowSet& ready() const { return ready_; }

  // Turns to the waiting rows that no waiting row reads; false where all are read.
  PYGEN_DEVICE bool next_round() const {
    read_.clear();
    __syncthreads();
    for (int row = threadIdx.x; row < pack_.rows; row += kThreads)
      if (waiting_.has(row)) read_.add(source(row));
    __syncthreads();
    bool any = false;
    for (int i = threadIdx.x; i < waiting_.words(); i += kThreads) {
      const uint32_t ready = waiting_.word(i) & ~read_.word(i);
      ready_.set_word(i, ready);
      waiting_.set_word(i, waiting_.word(i) & ~ready);
      any |= ready != 0;
    }
    return __syncthreads_or(any) != 0;
  }

  // Then every waiting row is part of a cycle: turns to the lowest row of each.
  PYGEN_DEVICE void turn_to_cycles() const {
    for (int row = threadIdx.x; row < pack_.rows; row += kThreads) {
      if (!waiting_.has(row)) continue;
      int other = source(row);
      while (other > row) other = source(other);
      if (other == row) ready_.add(row);
    }
    __syncthreads();
  }

 private:
  PYGEN_DEVICE static int64_t end_of(const Pack& pack) {
    if (pack.span == nullptr) return pack.length;
    const int64_t end = load_scalar(pack.span + 1);
    return end < pack.length ? end : pack.length;
  }

  const Pack& pack_;
  const int64_t offset_;  // of all starts
  const int64_t end_;     // of all rows
  RowSet waiting_, read_, ready_;
  Shared<uint64_t> first_;
};

// No row that is ready is read by another one that is.
template <typename Vector>
PYGEN_DEVICE void copy_ready(const Moves& moves, char* at, int64_t row_stride, int64_t position) {
  int row = moves.ready().next(0);
  while (row >= 0) {
    Vector staged[kCopiesInFlight];
    int targets[kCopiesInFlight];
#pragma unroll
    for (int i = 0; i < kCopiesInFlight; ++i) {
      targets[i] = row >= 0 && position >= moves.start(row) ? row : -1;
      if (targets[i] >= 0) staged[i] = *reinterpret_cast<const Vector*>(at + moves.source(row) * row_stride);
      if (row >= 0) row = moves.ready().next(row + 1);
    }
#pragma unroll
    for (int i = 0; i < kCopiesInFlight; ++i)
      if (targets[i] >= 0) *reinterpret_cast<Vector*>(at + targets[i] * row_stride) = staged[i];
  }
}

template <typename Vector>
PYGEN_DEVICE void copy_cycles(const Moves& moves, char* at, int64_t row_stride, int64_t position) {
  for (int lowest = moves.ready().next(0); lowest >= 0; lowest = moves.ready().next(lowest + 1)) {
    const Vector kept = *reinterpret_cast<const Vector*>(at + lowest * row_stride);
    for (int row = lowest;;) {
      const int source = moves.source(row);
      const Vector value = source == lowest ? kept : *reinterpret_cast<const Vector*>(at + source * row_stride);
      if (position >= moves.start(row)) *reinterpret_cast<Vector*>(at + row * row_stride) = value;
      if (source == lowest) break;
      row = source;
    }
  }
}

template <typename Vector>
PYGEN_DEVICE void copy_vector(const Moves& moves, bool cycles, char* at, int64_t row_stride, int64_t position) {
  if (cycles) {
    copy_cycles<Vector>(moves, at, row_stride, position);
  } else {
    copy_ready<Vector>(moves, at, row_stride, position);
  }
}

PYGEN_DEVICE void copy_all(const Pack& pack, const Moves& moves, bool cycles) {
  const int64_t first = moves.first();
  uint32_t tile = blockIdx.x;
  for (int t = 0; t < pack.count; ++t) {
    const Cache& cache = pack.caches[t];
    const uint32_t in_head = static_cast<uint32_t>((moves.end() - first) * cache.vectors);
    const uint32_t tiles_in_head = (in_head + kThreads - 1) / kThreads;
    const uint32_t tiles = tiles_in_head * cache.heads;
    for (; tile < tiles; tile += gridDim.x) {
      const uint32_t head = tile / tiles_in_head;
      const uint32_t i = (tile - head * tiles_in_head) * kThreads + threadIdx.x;
      if (i >= in_head) continue;
      const int64_t position = first + i / cache.vectors;
      const int64_t vector = i % cache.vectors;
      char* const at = cache.data + head * cache.head_stride + position * cache.position_stride + vector * cache.width;
      switch (cache.width) {
        case 16: copy_vector<uint4>(moves, cycles, at, cache.row_stride, position); break;
        case 8: copy_vector<uint2>(moves, cycles, at, cache.row_stride, position); break;
        case 4: copy_vector<uint32_t>(moves, cycles, at, cache.row_stride, position); break;
        case 2: copy_vector<uint16_t>(moves, cycles, at, cache.row_stride, position); break;
        default: copy_vector<uint8_t>(moves, cycles, at, cache.row_stride, position); break;
      }
    }
    tile -= tiles;
  }
}

// Without a bound on the blocks ptxas keeps to 64 registers, and spills.
__global__ void __launch_bounds__(kThreads, 3) reorder_cache_kernel(const Pack pack) {
  SharedMemory memory;
  const Moves moves(pack, memory);
  while (moves.next_round()) copy_all(pack, moves, /*cycles=*/false);
  moves.turn_to_cycles();
  if (moves.ready().next(0) >= 0) copy_all(pack, moves, /*cycles=*/true);
}

// The widest vector to which all pointers, strides and sizes are aligned.
int vector_width(const Cache& cache, int64_t bytes) {
  const int64_t all =
      reinterpret_cast<int64_t>(cache.data) | cache.row_stride | cache.head_stride | cache.position_stride | bytes;
  int width = static_cast<int>(sizeof(uint4));
  while (all % width != 0) width /= 2;
  return width;
}

Cache cache_of(const CacheTensor& tensor, const ReorderParams& params) {
  Cache cache{};
  cache.data = tensor.data;
  cache.row_stride = tensor.row_stride * tensor.element_size;
  // The stride of a dimension of size one does not matter.
  cache.head_stride = tensor.heads > 1 ? tensor.head_stride * tensor.element_size : 0;
  cache.position_stride = params.length > 1 ? tensor.position_stride * tensor.element_size : 0;
  const int64_t bytes = tensor.head_dim * tensor.element_size;
  cache.heads = static_cast<int>(tensor.heads);
  cache.width = vector_width(cache, bytes);
  cache.vectors = static_cast<int>(bytes / cache.width);
  return cache;
}

unsigned shared_bytes(int64_t rows) {
  const int64_t set = ((rows + kWordBits - 1) / kWordBits * sizeof(uint32_t) + 15) / 16 * 16;
  return static_cast<unsigned>(3 * set + 16);
}

}  // namespace

Error reorder_cache(const ReorderParams& params, const Context& context) {
  const int64_t first = params.start.per_row != nullptr ? 0 : params.start.value;
  if (params.rows < 2 || first >= params.length) return cudaSuccess;
  Pack pack{};
  pack.rows = static_cast<int>(params.rows);
  pack.length = params.length;
  pack.start = params.start;
  pack.span = params.span;
  pack.beam_idx = params.beam_idx;
  Launch launch;
  launch.threads = kThreads;
  launch.shared = shared_bytes(params.rows);
  launch.stream = context.stream;
  const int64_t max_blocks = static_cast<int64_t>(context.device.multiprocessors) * kBlocksPerMultiprocessor;
  for (int64_t t = 0; t < params.num_tensors;) {
    int64_t tiles = 0;
    for (pack.count = 0; pack.count < kTensorsPerLaunch && t < params.num_tensors; ++t) {
      const Cache cache = cache_of(params.tensors[t], params);
      const int64_t in_head = (params.length - first) * cache.vectors;
      tiles += (in_head + kThreads - 1) / kThreads * cache.heads;
      pack.caches[pack.count++] = cache;
    }
    if (tiles == 0) continue;
    launch.blocks = static_cast<unsigned>(tiles < max_blocks ? tiles : max_blocks);
    const cudaError_t error = launch_kernel(reorder_cache_kernel, launch, pack);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace pygen::cuda
