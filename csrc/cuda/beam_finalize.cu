// beam_finalize: the best hypotheses of a beam search, each walked from its last token back through the parents.
//
// A walk is one dependent read per step. So a block brings the parents of a prompt's beams into shared memory, a
// stretch of steps at a time, where the walks of all its hypotheses take them; tokens are fetched behind the walks, all
// at once. Blocks behind those of the prompts copy the prompts' columns.
#include "cuda/device.cuh"
#include "cuda/launchers.h"

namespace pygen::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStagedParents = 8192;
constexpr int kMaxSteps = 256;
constexpr int kColumnsPerBlock = 4096;

struct Stretch {
  int beams;  // per prompt
  int steps;  // at most
};

PYGEN_DEVICE void copy_prompts(const FinalizeParams& params, int64_t block, int64_t blocks) {
  const int64_t rows = params.batch_size * params.num_return_sequences;
  const int64_t pieces = (params.prompt_length + kColumnsPerBlock - 1) / kColumnsPerBlock;
  for (int64_t piece = block; piece < rows * pieces; piece += blocks) {
    const int64_t row = piece / pieces;
    const int64_t first = (piece - row * pieces) * kColumnsPerBlock;
    const int64_t end =
        first + kColumnsPerBlock < params.prompt_length ? first + kColumnsPerBlock : params.prompt_length;
    const int64_t* from =
        params.token_ids + row / params.num_return_sequences * params.num_beams * params.token_ids_stride;
    int64_t* to = params.sequences + row * (params.prompt_length + params.width);
    for (int64_t i = first + threadIdx.x; i < end; i += kThreads) to[i] = from[i];
  }
}

class PromptWalks {
 public:
  PYGEN_DEVICE PromptWalks(const FinalizeParams& params, const Stretch& stretch, int64_t prompt, SharedMemory& memory)
      : params_(params),
        rows_(params.batch_size * params.num_beams),
        first_beam_(prompt * params.num_beams),
        first_row_(prompt * params.num_return_sequences),
        hypotheses_(static_cast<int>(params.num_return_sequences)),
        beams_(stretch.beams),
        steps_(stretch.steps),
        parents_(memory.take<int32_t>(stretch.beams * stretch.steps)),
        beam_(memory.take<int32_t>(hypotheses_)),
        length_(memory.take<int32_t>(hypotheses_)) {}

  PYGEN_DEVICE void run() const {
    for (int h = threadIdx.x; h < hypotheses_; h += kThreads) {
      beam_.set(h, -1);
      length_.set(h, static_cast<int32_t>(params_.finished_steps[first_beam_ + h] + 1));
    }
    for (int64_t end = params_.width; end > 0; end -= steps_) {
      const int64_t begin = end > steps_ ? end - steps_ : 0;
      const int count = static_cast<int>(end - begin);
      bring_parents(begin, count);
      __syncthreads();
      for (int h = threadIdx.x; h < hypotheses_; h += kThreads) walk(h, begin, count);
      __syncthreads();
      write_tokens(begin, count);
    }
  }

 private:
  // Of every beam, at steps [begin, begin + count).
  PYGEN_DEVICE void bring_parents(int64_t begin, int count) const {
    for (int i = threadIdx.x; i < count * beams_; i += kThreads) {
      const int step = i / beams_;
      parents_.set(i, load_scalar(params_.step_parents + (begin + step) * rows_ + first_beam_ + (i - step * beams_)));
    }
  }

  // A broken walk shows in the beam indices, which the op looks through.
  PYGEN_DEVICE int64_t safe(int32_t beam) const { return beam >= 0 && beam < rows_ ? beam : 0; }

  PYGEN_DEVICE int32_t* beam_indices(int h) const { return params_.beam_indices + (first_row_ + h) * params_.width; }

  // Writes the beam indices of the stretch. A token at a step has grown from the beam of the step before.
  PYGEN_DEVICE void walk(int h, int64_t begin, int count) const {
    const int32_t length = length_.get(h);
    int32_t beam = beam_.get(h);
    int32_t* const out = beam_indices(h);
    for (int step = count - 1; step >= 0; --step) {
      if (begin + step >= length) {
        out[begin + step] = -1;
        continue;
      }
      if (begin + step == length - 1) {
        beam = params_.finished_parents[first_beam_ + h];
      } else {
        const int64_t from = safe(beam), column = from - first_beam_;
        beam = column >= 0 && column < beams_ ? parents_.get(step * beams_ + static_cast<int>(column))
                                              : params_.step_parents[(begin + step) * rows_ + from];
      }
      out[begin + step] = beam;
    }
    beam_.set(h, beam);
  }

  PYGEN_DEVICE void write_tokens(int64_t begin, int count) const {
    const int64_t columns = params_.prompt_length + params_.width;
    for (int i = threadIdx.x; i < count * hypotheses_; i += kThreads) {
      const int h = i / count;
      const int64_t step = begin + (i - h * count);
      const int last = length_.get(h) - 1;
      int64_t token = params_.pad_token_id;
      if (step == last) {
        token = params_.finished_tokens[first_beam_ + h];
      } else if (step < last) {
        token = load_scalar(params_.step_tokens + step * rows_ + safe(beam_indices(h)[step + 1]));
      }
      params_.sequences[(first_row_ + h) * columns + params_.prompt_length + step] = token;
    }
  }

  const FinalizeParams& params_;
  const int64_t rows_, first_beam_, first_row_;
  const int hypotheses_, beams_, steps_;
  const Shared<int32_t> parents_, beam_, length_;
};

__global__ void __launch_bounds__(kThreads) beam_finalize_kernel(const FinalizeParams params, const Stretch stretch) {
  if (blockIdx.x < params.batch_size) {
    SharedMemory memory;
    PromptWalks(params, stretch, blockIdx.x, memory).run();
  } else {
    copy_prompts(params, blockIdx.x - params.batch_size, gridDim.x - params.batch_size);
  }
}

}  // namespace

Error beam_finalize(const FinalizeParams& params, const Context& context) {
  const int64_t rows = params.batch_size * params.num_return_sequences;
  if (rows == 0) return cudaSuccess;
  Stretch stretch{static_cast<int>(params.num_beams), static_cast<int>(kStagedParents / params.num_beams)};
  stretch.steps = stretch.steps < 1 ? 1 : stretch.steps < kMaxSteps ? stretch.steps : kMaxSteps;
  const int64_t pieces = rows * ((params.prompt_length + kColumnsPerBlock - 1) / kColumnsPerBlock);
  const int64_t max_blocks = 4 * static_cast<int64_t>(context.device.multiprocessors);
  Launch launch;
  launch.blocks = static_cast<unsigned>(params.batch_size + (pieces < max_blocks ? pieces : max_blocks));
  launch.threads = kThreads;
  const int64_t words = params.num_beams * stretch.steps + 2 * params.num_return_sequences;
  launch.shared = static_cast<unsigned>(words * sizeof(int32_t) + 3 * 16);
  launch.stream = context.stream;
  return launch_kernel(beam_finalize_kernel, launch, params, stretch);
}

}  // namespace pygen::cuda
