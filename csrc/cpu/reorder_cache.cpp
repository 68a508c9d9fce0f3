// reorder_cache: rows of key and value tensors take over the last positions of other rows, in place.
// Bytes: one read and one write of what moves. The order of the moves overwrites no row
// that another still has to read, so only a cycle (a swap, say) keeps one of its rows aside, a block of positions at a
// time.
#include <algorithm>
#include <cstring>

#include "common/reorder_params.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace pygen::cpu::PYGEN_ISA {
namespace {

// Of one head, so that what several rows take over is read from memory once and a kept row stays in the cache.
constexpr int64_t kBlockBytes = 32768;
constexpr int64_t kBytesPerThread = 131072;
// The row of the block that was kept aside.
constexpr int64_t kKept = -1;

// Row `target` takes over positions [start, length) of row `source`.
struct Move {
  int64_t target;
  int64_t source;
  int64_t start;
};

class Moves {
 public:
  explicit Moves(const ReorderParams& params)
      : params_(params),
        offset_(params.span != nullptr ? params.span[0] : 0),
        end_(params.span != nullptr ? std::min(params.span[1], params.length) : params.length),
        first_(end_) {
    readers_.reserve(params.rows);
    std::fill_n(readers_.data(), params.rows, int64_t{0});
    for (int64_t row = 0; row < params.rows; ++row)
      if (moves(row)) ++readers_[source_of(row)];
    for (int64_t row = 0; row < params.rows; ++row) add_chain(row);
    for (int64_t row = 0; row < params.rows; ++row) add_cycle(row);
  }

  int64_t size() const { return moves_.size(); }
  const Move& operator[](int64_t i) const { return moves_[i]; }
  bool any_kept() const { return any_kept_; }
  int64_t first() const { return first_; }          // the first position that any row writes
  int64_t end() const { return end_; }              // behind the last one
  int64_t positions() const { return positions_; }  // written by all rows together

 private:
  int64_t source_of(int64_t row) const { return params_.beam_idx[row]; }
  int64_t start_of(int64_t row) const { return offset_ + knob_at(params_.start, row); }
  bool moves(int64_t row) const { return source_of(row) != row && start_of(row) < end_; }

  void add(int64_t target, int64_t source, int64_t reader) {
    const int64_t start = start_of(reader);
    moves_.push({target, source, start});
    first_ = std::min(first_, start);
    positions_ += end_ - start;
  }

  // Writes a row that no other has to read any more, which may free its source, and so on.
  void add_chain(int64_t row) {
    while (moves(row) && readers_[row] == 0) {
      add(row, source_of(row), row);
      readers_[row] = kWritten;
      row = source_of(row);
      --readers_[row];
    }
  }

  // Every row that is left is read by exactly one other.
  void add_cycle(int64_t row) {
    if (!moves(row) || readers_[row] == kWritten) return;
    int64_t last = row;
    while (source_of(last) != row) last = source_of(last);
    add(kKept, row, last);
    any_kept_ = true;
    for (int64_t target = row; target != last; target = source_of(target)) {
      add(target, source_of(target), target);
      readers_[target] = kWritten;
    }
    add(last, kKept, last);
    readers_[last] = kWritten;
  }

  static constexpr int64_t kWritten = -1;

  const ReorderParams& params_;
  const int64_t offset_;     // of all starts
  const int64_t end_;        // of all rows
  Buffer<int64_t> readers_;  // (rows,) how many rows have yet to read it
  Buffer<Move> moves_;
  bool any_kept_ = false;
  int64_t first_;
  int64_t positions_ = 0;
};

// One tensor cut into blocks of positions of one head.
struct Blocks {
  Blocks(const CacheTensor& tensor, const Moves& moves)
      : width(tensor.head_dim * tensor.element_size),
        positions(std::max(int64_t{1}, kBlockBytes / std::max(int64_t{1}, width))),
        per_head((moves.end() - moves.first() + positions - 1) / positions),
        count(width > 0 ? per_head * tensor.heads : 0) {}

  int64_t width;  // bytes of one position
  int64_t positions;
  int64_t per_head;
  int64_t count;
};

void copy_positions(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t count, int64_t width) {
  if (to_stride == width && from_stride == width) {
    std::memcpy(to, from, count * width);
    return;
  }
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, width);
}

void move_block(const CacheTensor& tensor, const Blocks& blocks, int64_t block, const Moves& moves, char* kept) {
  const int64_t head = block / blocks.per_head;
  const int64_t first = moves.first() + block % blocks.per_head * blocks.positions;
  const int64_t end = std::min(first + blocks.positions, moves.end());
  char* const of_head = tensor.data + head * tensor.head_stride * tensor.element_size;
  const int64_t stride = tensor.position_stride * tensor.element_size;
  for (int64_t i = 0; i < moves.size(); ++i) {
    const Move& move = moves[i];
    const int64_t begin = std::max(first, move.start);
    if (begin >= end) continue;
    const auto at = [&](int64_t row) {
      return row == kKept ? kept + (begin - first) * blocks.width
                          : of_head + (row * tensor.row_stride + begin * tensor.position_stride) * tensor.element_size;
    };
    copy_positions(at(move.target), move.target == kKept ? blocks.width : stride, at(move.source),
                   move.source == kKept ? blocks.width : stride, end - begin, blocks.width);
  }
}

}  // namespace

void reorder_cache(const ReorderParams& params) {
  const Moves moves(params);
  if (moves.size() == 0) return;
  int64_t count = 0, bytes = 0, buffer_bytes = kBlockBytes;
  for (int64_t t = 0; t < params.num_tensors; ++t) {
    const Blocks blocks(params.tensors[t], moves);
    count += blocks.count;
    bytes += moves.positions() * params.tensors[t].heads * blocks.width;
    buffer_bytes = std::max(buffer_bytes, blocks.width);
  }
  const int64_t useful = std::min(count, bytes / kBytesPerThread + 1);
  const int parts = static_cast<int>(std::min(useful, static_cast<int64_t>(params.threads)));
  Buffer<char> kept;
  char* const buffers = moves.any_kept() ? kept.reserve(parts * buffer_bytes) : nullptr;

  parallel_parts(count, parts, [&](int64_t begin, int64_t end, int part) {
    int64_t before = 0;  // blocks of the tensors that were passed
    for (int64_t t = 0; t < params.num_tensors && before < end; ++t) {
      const Blocks blocks(params.tensors[t], moves);
      const int64_t last = std::min(end - before, blocks.count);
      for (int64_t block = std::max(begin - before, int64_t{0}); block < last; ++block)
        move_block(params.tensors[t], blocks, block, moves,
                   buffers != nullptr ? buffers + part * buffer_bytes : nullptr);
      before += blocks.count;
    }
  });
}

}  // namespace pygen::cpu::PYGEN_ISA
