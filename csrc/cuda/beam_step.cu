// beam_step: two launches. In the first a cluster per beam reads the row's logits once and sorts the beam's K best
// continuations. In the second a block per prompt merges those of its beams and updates the finished hypotheses, the
// running beams and their rows. Bytes per row: one read of the logits from memory.
#include "cuda/beam_select.cuh"
#include "cuda/beam_update.cuh"

namespace pygen::cuda {
namespace {

constexpr size_t kTotalsBytes = 256;

template <DType kDType, bool kDraws, bool kShaped>
__global__ void __launch_bounds__(kThreads, 1)
    select_continuations(const __grid_constant__ BeamParams params, const __grid_constant__ RowLaunch plan,
                         void* workspace) {
  auto* far = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + kTotalsBytes);
  SharedMemory memory;
  BeamSelection<kDType, kDraws, kShaped>(params, plan, cluster_index(), far, memory).run();
}

PYGEN_DEVICE void take_candidates(const BeamParams& params, int64_t prompt, const PromptCandidates& candidates) {
#pragma unroll 1
  for (int i = thread_index(); i < params.num_candidates; i += kThreads) {
    const int64_t at = prompt * params.num_candidates + i;
    candidates.ids.set(i, params.candidate_ids[at]);
    candidates.parents.set(i, static_cast<int>(params.candidate_parents[at]));
    candidates.scores.set(i, params.candidate_scores[at]);
  }
  __syncthreads();
}

PYGEN_DEVICE void give_candidates(const BeamParams& params, int64_t prompt, const PromptCandidates& candidates) {
#pragma unroll 1
  for (int i = thread_index(); i < params.num_candidates; i += kThreads) {
    const int64_t at = prompt * params.num_candidates + i;
    params.candidate_ids[at] = candidates.ids.get(i);
    params.candidate_parents[at] = candidates.parents.get(i);
    params.candidate_scores[at] = candidates.scores.get(i);
  }
}

PYGEN_DEVICE void stay(const BeamParams& params, int64_t prompt) {
  const int64_t first = prompt * params.num_beams;
#pragma unroll 1
  for (int64_t row = first + thread_index(); row < first + params.num_beams; row += kThreads)
    give_unmoved_row(params, row);
}

// What the first block does for all prompts.
PYGEN_DEVICE void finish_call(const BeamParams& params) {
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  const bool drew = params.select && params.do_sample && params.rng == Rng::kTorch;
  if (drew && params.torch_noise.generator != nullptr)
    params.torch_noise.generator[1] += static_cast<uint64_t>(params.torch_noise.increment);
  if (params.advance && params.shaping.rows == 0) *params.unfinished = 0;
}

__global__ void __launch_bounds__(kThreads, 1)
    finish_step(const __grid_constant__ BeamParams params, BeamTotals* totals) {
  if (params.shaping.rows == 0) return finish_call(params);
  const int64_t prompt = blockIdx.x;
  SharedMemory memory;
  const PromptCandidates candidates(memory, static_cast<int>(params.num_candidates));
  PromptMerge merge(params, prompt, memory);
  const PromptUpdate update(params, prompt, candidates, merge.ranking(), memory);
  if (params.advance) update.prepare();
  wait_for_previous_kernel();
  if (comes_too_late(params)) return stay(params, prompt);
  finish_call(params);
  if (params.select) {
    merge.run(candidates);
    give_candidates(params, prompt, candidates);
  } else {
    take_candidates(params, prompt, candidates);
  }
  if (params.advance) update.run(totals);
}

template <DType kDType, bool kDraws, bool kShaped>
Error launch_selection(const BeamParams& params, const Context& context) {
  const auto kernel = select_continuations<kDType, kDraws, kShaped>;
  const RowNeeds needs = BeamSelection<kDType, kDraws, kShaped>::needs(params.num_candidates);
  const RowLaunch plan = plan_rows<kDType>(params.shaping, context.device, address_of(kernel), needs, /*sums=*/true,
                                           /*rereads=*/false);
  const Launch launch = launch_of_rows(params.shaping.rows, plan.geometry,
                                       shared_of<kDType>(plan, params.shaping.vocab_size, needs), context);
  return launch_kernel(kernel, launch, params, plan, context.workspace);
}

template <DType kDType>
Error launch_selection(const BeamParams& params, const Context& context) {
  if (params.do_sample) return launch_selection<kDType, true, true>(params, context);
  const RowNeeds needs = BeamSelection<kDType, false, false>::needs(params.num_candidates);
  return is_shaped<kDType>(params.shaping, context.device, needs)
             ? launch_selection<kDType, false, true>(params, context)
             : launch_selection<kDType, false, false>(params, context);
}

Error launch_finish(const BeamParams& params, const Context& context) {
  const int64_t prompts = params.shaping.rows / params.num_beams;
  Launch launch;
  launch.blocks = static_cast<unsigned>(prompts > 0 ? prompts : 1);
  launch.threads = kThreads;
  launch.shared = static_cast<unsigned>(PromptCandidates::bytes(params.num_candidates) + PromptMerge::bytes(params) +
                                        PromptUpdate::bytes(params));
  launch.dependent = params.select && params.shaping.rows > 0 && context.device.major >= 9;
  launch.stream = context.stream;
  return launch_kernel(finish_step, launch, params, static_cast<BeamTotals*>(context.workspace));
}

}  // namespace

size_t beam_step_workspace(const BeamParams& params, const Device& device) {
  ShapingParams longest = params.shaping;
  const int64_t capacity = params.prompt_length + params.max_new_tokens;
  if (longest.history_length < capacity) longest.history_length = capacity;
  // A draw needs the most.
  const RowNeeds needs = BeamSelection<DType::kBFloat16, true, true>::needs(params.num_candidates);
  return kTotalsBytes + extra_workspace(longest, device, needs);
}

Error beam_step(const BeamParams& params, const Context& context) {
  BeamParams own = params;
  if (own.do_sample && own.rng == Rng::kTorch && own.torch_noise.threads == 0)
    set_torch_launch(own.torch_noise, own.shaping.rows * own.shaping.vocab_size, context.device.multiprocessors,
                     context.device.threads_per_multiprocessor);
  if (own.select && own.shaping.rows > 0) {
    Error error;
    switch (own.shaping.dtype) {
      case DType::kFloat16: error = launch_selection<DType::kFloat16>(own, context); break;
      case DType::kBFloat16: error = launch_selection<DType::kBFloat16>(own, context); break;
      default: error = launch_selection<DType::kFloat32>(own, context); break;
    }
    if (error != cudaSuccess) return error;
  }
  return launch_finish(own, context);
}

}  // namespace pygen::cuda
