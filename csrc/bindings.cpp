// The Python module pygen._C, and the only user of pybind11. It sees integers: pointers, sizes, strides in elements.
// Every check of a tensor is made in pygen/ops before; what is left here refuses null pointers and negative sizes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/beam_params.h"
#include "common/draft_params.h"
#include "common/finalize_params.h"
#include "common/logprob_params.h"
#include "common/reorder_params.h"
#include "common/row_seed.h"
#include "common/sample_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "cuda/launchers.h"
#endif

namespace py = pybind11;

namespace {

using pygen::BeamParams;
using pygen::Knob;
using pygen::ProcessParams;
using pygen::SampleParams;
using pygen::ShapingParams;

// Below this many scores a call is over before another Python thread could use the interpreter.
constexpr int64_t kScoresToReleaseTheInterpreter = 32768;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Reads keyword arguments by name and, at the end, refuses what nobody asked for.
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

ShapingParams take_shaping(Arguments& arguments) {
  ShapingParams params;
  params.rows = arguments.take<int64_t>("rows");
  params.vocab_size = arguments.take<int64_t>("vocab_size");
  params.dtype = static_cast<pygen::DType>(arguments.take<int>("dtype"));
  params.threads = std::max(1, arguments.take<int>("threads"));
  if (params.rows < 0 || params.vocab_size < 1) throw std::invalid_argument("rows must be >= 0 and vocab_size >= 1");
  params.temperature = arguments.take_knob<float>("temperature");
  params.top_p = arguments.take_knob<float>("top_p");
  params.min_p = arguments.take_knob<float>("min_p");
  params.typical_p = arguments.take_knob<float>("typical_p");
  params.epsilon_cutoff = arguments.take_knob<float>("epsilon_cutoff");
  params.eta_cutoff = arguments.take_knob<float>("eta_cutoff");
  params.top_h = arguments.take_knob<float>("top_h");
  params.repetition_penalty = arguments.take_knob<float>("repetition_penalty");
  params.presence_penalty = arguments.take_knob<float>("presence_penalty");
  params.frequency_penalty = arguments.take_knob<float>("frequency_penalty");
  params.top_k = arguments.take_knob<int64_t>("top_k");
  params.no_repeat_ngram_size = arguments.take_knob<int64_t>("no_repeat_ngram_size");
  params.min_tokens_to_keep = arguments.take_knob<int64_t>("min_tokens_to_keep");
  params.prompt_lengths = arguments.take_knob<int64_t>("prompt_lengths");
  params.input_ids = arguments.take_pointer<int64_t>("input_ids_ptr");
  params.input_ids_stride = arguments.take<int64_t>("input_ids_stride");
  params.history_length = arguments.take<int64_t>("input_ids_length");
  params.history_steps = arguments.take_pointer<int64_t>("history_steps_ptr");
  params.bias = arguments.take_pointer<float>("bias_ptr");
  params.bias_stride = arguments.take<int64_t>("bias_stride");
  params.suppress = arguments.take_pointer<int64_t>("suppress_ptr");
  params.suppress_stride = arguments.take<int64_t>("suppress_stride");
  params.suppress_count = arguments.take<int64_t>("suppress_count");
  params.bitmask = arguments.take_pointer<int32_t>("bitmask_ptr");
  params.bitmask_stride = arguments.take<int64_t>("bitmask_stride");
  return params;
}

void set_call(ShapingParams& params, uintptr_t logits, int64_t logits_stride, int64_t length) {
  if (logits == 0 && params.rows > 0) throw std::invalid_argument("logits is a null pointer");
  params.logits = pointer<const void>(logits);
  params.logits_stride = logits_stride;
  params.history_length = length;
}

// Tables of a call: pointer, stride and columns of input_ids, pointer and stride of bias, pointer, stride and count of
// suppress, pointer and stride of the bitmask.
using Tables = std::array<int64_t, 10>;

void set_tables(ShapingParams& params, const std::optional<Tables>& tables) {
  if (!tables) return;
  const auto& [ids, ids_stride, length, bias, bias_stride, suppress, suppress_stride, count, mask, mask_stride] =
      *tables;
  params.input_ids = pointer<const int64_t>(static_cast<uintptr_t>(ids));
  params.input_ids_stride = ids_stride;
  params.history_length = length;
  params.bias = pointer<const float>(static_cast<uintptr_t>(bias));
  params.bias_stride = bias_stride;
  params.suppress = pointer<const int64_t>(static_cast<uintptr_t>(suppress));
  params.suppress_stride = suppress_stride;
  params.suppress_count = count;
  params.bitmask = pointer<const int32_t>(static_cast<uintptr_t>(mask));
  params.bitmask_stride = mask_stride;
}

// For rows that have none of their own.
std::vector<int64_t> row_seeds(const std::optional<uint64_t>& seed, int64_t rows) {
  std::vector<int64_t> seeds(seed ? static_cast<size_t>(rows) : 0);
  for (size_t row = 0; row < seeds.size(); ++row)
    seeds[row] = static_cast<int64_t>(pygen::row_seed(*seed, static_cast<int64_t>(row)));
  return seeds;
}

template <typename Params>
void launch(void (*op)(const Params&), const Params& params) {
  if (params.shaping.rows * params.shaping.vocab_size < kScoresToReleaseTheInterpreter) {
    op(params);
  } else {
    py::gil_scoped_release release;
    op(params);
  }
}

void check_noise(pygen::Rng rng, const void* generator_state, const void* noise, const void* seeds) {
  const void* source = rng == pygen::Rng::kTorch ? generator_state : rng == pygen::Rng::kGiven ? noise : seeds;
  if (source == nullptr) throw std::invalid_argument("the noise's pointer is null");
}

#if PYGEN_CUDA
void check_launch(pygen::cuda::Error error) {
  if (error != 0) throw std::runtime_error(pygen::cuda::error_text(error));
}

pygen::cuda::Device device_of(int ordinal) {
  pygen::cuda::Device device;
  check_launch(pygen::cuda::device_of(ordinal, device));
  return device;
}

// Device, stream and workspace of a plan's launches.
class CudaPlace {
 public:
  const pygen::cuda::Device& set_device(int ordinal) { return context_.device = device_of(ordinal); }
  void set_workspace(uintptr_t address) { context_.workspace = pointer<void>(address); }
  pygen::cuda::Context on_stream(uintptr_t stream) const {
    pygen::cuda::Context context = context_;
    context.stream = pointer<CUstream_st>(stream);
    return context;
  }

 private:
  pygen::cuda::Context context_;
};

void set_torch_noise(pygen::TorchCudaNoise& noise, const ShapingParams& shaping, const pygen::cuda::Device& device) {
  pygen::set_torch_launch(noise, shaping.rows * shaping.vocab_size, device.multiprocessors,
                          device.threads_per_multiprocessor);
}

// Where the generator stands: its two numbers, or their place on the device.
void set_generator(pygen::TorchCudaNoise& noise, uint64_t seed, uint64_t offset, uintptr_t generator) {
  noise.seed = seed;
  noise.offset = offset;
  noise.generator = pointer<uint64_t>(generator);
}
#endif

// A plan is what was checked. Its calls leave it as it is, so that threads may share it: each takes the parameters by
// value and sets its own.
class SamplePlan {
 public:
  explicit SamplePlan(const py::kwargs& kwargs) {
    Arguments arguments(kwargs);
    params_.shaping = take_shaping(arguments);
    params_.rng = static_cast<pygen::Rng>(arguments.take<int>("rng"));
    params_.seeds = arguments.take_pointer<int64_t>("seeds_ptr");
    params_.step.per_row = arguments.take_pointer<int64_t>("steps_ptr");
    params_.noise = arguments.take_pointer<float>("noise_ptr");
    params_.noise_stride = arguments.take<int64_t>("noise_stride");
    params_.num_logprobs = arguments.take<int64_t>("num_logprobs");
    params_.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
    params_.status = arguments.take_pointer<int32_t>("status_ptr");
    params_.logprobs = arguments.take_pointer<float>("logprobs_ptr");
    params_.top_ids = arguments.take_pointer<int64_t>("top_ids_ptr");
    params_.top_logprobs = arguments.take_pointer<float>("top_logprobs_ptr");
    pygen::StateParams& state = params_.state;
    state.token_ids = arguments.take_pointer<int64_t>("append_ptr");
    state.token_ids_stride = arguments.take<int64_t>("append_stride");
    state.history = arguments.take_pointer<int64_t>("history_ptr");
    state.history_stride = arguments.take<int64_t>("history_stride");
    if (state.history == nullptr) state.history = state.token_ids;
    state.finished = arguments.take_pointer<uint8_t>("finished_ptr");
    state.num_generated = arguments.take_pointer<int64_t>("num_generated_ptr");
    state.unfinished = arguments.take_pointer<int64_t>("unfinished_ptr");
    state.eos_token_ids = arguments.take_pointer<int64_t>("eos_ptr");
    state.eos_count = arguments.take<int64_t>("eos_count");
    state.pad_token_id = arguments.take<int64_t>("pad_token_id");
    state.append_offset = arguments.take<int64_t>("append_offset");
    state.steps = arguments.take_pointer<int64_t>("state_steps_ptr");
    arguments.finish();
    if (state.token_ids != nullptr &&
        (state.finished == nullptr || state.num_generated == nullptr || state.unfinished == nullptr))
      throw std::invalid_argument("a state pointer is null");
  }

  void run(uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, uintptr_t generator_state) const {
    SampleParams params = params_of_call(logits, logits_stride, step, length);
    params.generator_state = pointer<uint8_t>(generator_state);
    draw(params);
  }

  // With steps, tables, seeds and results of the call's own. outputs: token_ids, status, logprobs, top_ids, top_logprobs.
  void run_with(uintptr_t logits, int64_t logits_stride, int64_t step, uintptr_t steps, int threads,
                uintptr_t generator_state, const std::optional<uint64_t>& seed, const std::optional<Tables>& tables,
                const std::array<uintptr_t, 5>& outputs) const {
    const std::vector<int64_t> seeds = row_seeds(seed, params_.shaping.rows);
    SampleParams params = params_of_call(logits, logits_stride, step, 0);
    set_tables(params.shaping, tables);
    params.shaping.threads = std::max(1, threads);
    params.step.per_row = pointer<int64_t>(steps);
    params.generator_state = pointer<uint8_t>(generator_state);
    if (seed) params.seeds = seeds.data();
    params.token_ids = pointer<int64_t>(outputs[0]);
    params.status = pointer<int32_t>(outputs[1]);
    params.logprobs = pointer<float>(outputs[2]);
    params.top_ids = pointer<int64_t>(outputs[3]);
    params.top_logprobs = pointer<float>(outputs[4]);
    draw(params);
  }

#if PYGEN_CUDA
  size_t set_device(int ordinal) {
    const pygen::cuda::Device& device = place_.set_device(ordinal);
    set_torch_noise(params_.torch_noise, params_.shaping, device);
    return pygen::cuda::sample_workspace(params_, device);
  }
  void set_workspace(uintptr_t address) { place_.set_workspace(address); }
  int64_t generator_increment() const { return params_.torch_noise.increment; }

  void launch_on(uintptr_t stream, uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, uint64_t seed,
                 uint64_t offset, uintptr_t generator) const {
    SampleParams params = params_of_call(logits, logits_stride, step, length);
    set_generator(params.torch_noise, seed, offset, generator);
    check_launch(pygen::cuda::sample(params, place_.on_stream(stream)));
  }
#endif

 private:
  SampleParams params_of_call(uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length) const {
    SampleParams params = params_;
    set_call(params.shaping, logits, logits_stride, length);
    params.step.value = step;
    return params;
  }
  static void draw(const SampleParams& params) {
    if (params.shaping.rows > 0) {
      if (params.token_ids == nullptr || params.status == nullptr)
        throw std::invalid_argument("token_ids or status is a null pointer");
      check_noise(params.rng, params.generator_state, params.noise, params.seeds);
    }
    launch(pygen::cpu::implementation().sample, params);
  }

  SampleParams params_;
#if PYGEN_CUDA
  CudaPlace place_;
#endif
};

class ProcessPlan {
 public:
  explicit ProcessPlan(const py::kwargs& kwargs) {
    Arguments arguments(kwargs);
    params_.shaping = take_shaping(arguments);
    arguments.finish();
  }

  void run(uintptr_t logits, int64_t logits_stride, int64_t, int64_t length, uintptr_t out, int64_t out_stride) const {
    process(params_of_call(logits, logits_stride, length, out, out_stride));
  }

  // With tables of the call's own.
  void run_with(uintptr_t logits, int64_t logits_stride, int threads, const std::optional<Tables>& tables,
                uintptr_t out, int64_t out_stride) const {
    ProcessParams params = params_of_call(logits, logits_stride, 0, out, out_stride);
    set_tables(params.shaping, tables);
    params.shaping.threads = std::max(1, threads);
    process(params);
  }

#if PYGEN_CUDA
  size_t set_device(int ordinal) { return pygen::cuda::process_logits_workspace(params_, place_.set_device(ordinal)); }
  void set_workspace(uintptr_t address) { place_.set_workspace(address); }

  void launch_on(uintptr_t stream, uintptr_t logits, int64_t logits_stride, int64_t length, uintptr_t out,
                 int64_t out_stride) const {
    const ProcessParams params = params_of_call(logits, logits_stride, length, out, out_stride);
    check_launch(pygen::cuda::process_logits(params, place_.on_stream(stream)));
  }
#endif

 private:
  ProcessParams params_of_call(uintptr_t logits, int64_t logits_stride, int64_t length, uintptr_t out,
                               int64_t out_stride) const {
    ProcessParams params = params_;
    set_call(params.shaping, logits, logits_stride, length);
    params.out = pointer<float>(out);
    params.out_stride = out_stride;
    return params;
  }
  static void process(const ProcessParams& params) {
    if (params.out == nullptr && params.shaping.rows > 0) throw std::invalid_argument("out is a null pointer");
    launch(pygen::cpu::implementation().process_logits, params);
  }

  ProcessParams params_;
#if PYGEN_CUDA
  CudaPlace place_;
#endif
};

class BeamPlan {
 public:
  explicit BeamPlan(const py::kwargs& kwargs) {
    Arguments arguments(kwargs);
    BeamParams& p = params_;
    p.shaping = take_shaping(arguments);
    p.normalized = arguments.take<bool>("normalized");
    p.do_sample = arguments.take<bool>("do_sample");
    p.rng = static_cast<pygen::Rng>(arguments.take<int>("rng"));
    p.seeds = arguments.take_pointer<int64_t>("seeds_ptr");
    p.noise = arguments.take_pointer<float>("noise_ptr");
    p.noise_stride = arguments.take<int64_t>("noise_stride");
    arguments.take_pointer<int64_t>("steps_ptr");
    p.steps = arguments.take_pointer<int64_t>("state_steps_ptr");
    p.limit = arguments.take_pointer<int64_t>("limit_ptr");
    p.max_new_tokens = arguments.take<int64_t>("max_new_tokens");
    p.num_beams = arguments.take<int64_t>("num_beams");
    p.num_candidates = arguments.take<int64_t>("num_candidates");
    p.normalisers = required<float>(arguments, "normalisers_ptr");
    p.stops_when_full = arguments.take<bool>("stops_when_full");
    p.sorts_draws = arguments.take<bool>("sorts_draws");
    p.eos_token_ids = arguments.take_pointer<int64_t>("eos_ptr");
    p.eos_count = arguments.take<int64_t>("eos_count");
    p.pad_token_id = arguments.take<int64_t>("pad_token_id");
    p.append = arguments.take_pointer<int64_t>("append_ptr");
    p.append_stride = arguments.take<int64_t>("append_stride");
    p.history = arguments.take_pointer<int64_t>("history_ptr");
    p.history_stride = arguments.take<int64_t>("history_stride");
    p.prompt_length = arguments.take<int64_t>("prompt_length");
    p.slots = required<int64_t>(arguments, "slots_ptr");
    p.shared = required<int32_t>(arguments, "shared_ptr");
    p.running_scores = required<float>(arguments, "running_scores_ptr");
    p.step_tokens = required<int64_t>(arguments, "step_tokens_ptr");
    p.step_parents = required<int32_t>(arguments, "step_parents_ptr");
    p.finished_scores = required<float>(arguments, "finished_scores_ptr");
    p.finished = required<uint8_t>(arguments, "finished_ptr");
    p.finished_steps = required<int64_t>(arguments, "finished_steps_ptr");
    p.finished_tokens = required<int64_t>(arguments, "finished_tokens_ptr");
    p.finished_parents = required<int32_t>(arguments, "finished_parents_ptr");
    p.open = required<uint8_t>(arguments, "open_ptr");
    p.unfinished = required<int64_t>(arguments, "unfinished_ptr");
    p.candidate_ids = required<int64_t>(arguments, "candidate_ids_ptr");
    p.candidate_parents = required<int64_t>(arguments, "candidate_parents_ptr");
    p.candidate_scores = required<float>(arguments, "candidate_scores_ptr");
    p.ends = required<uint8_t>(arguments, "ends_ptr");
    p.best_of_row = required<char>(arguments, "best_of_row_ptr");
    p.count_of_row = required<int64_t>(arguments, "count_of_row_ptr");
    p.token_ids = required<int64_t>(arguments, "token_ids_ptr");
    p.source_rows = required<int64_t>(arguments, "source_rows_ptr");
    p.shared_out = required<int64_t>(arguments, "shared_out_ptr");
    p.status = required<int32_t>(arguments, "status_ptr");
    arguments.finish();
    if (p.num_beams < 1 || p.shaping.rows % p.num_beams != 0 || p.num_candidates < 2 * p.num_beams)
      throw std::invalid_argument("num_beams or num_candidates does not fit the rows");
  }

  void run(uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, uintptr_t generator_state,
           int halves) const {
    BeamParams params = params_of_call(logits, logits_stride, step, length, halves);
    params.generator_state = pointer<uint8_t>(generator_state);
    if (params.do_sample && params.select && params.shaping.rows > 0)
      check_noise(params.rng, params.generator_state, params.noise, params.seeds);
    launch(pygen::cpu::implementation().beam_step, params);
  }

#if PYGEN_CUDA
  size_t set_device(int ordinal) {
    const pygen::cuda::Device& device = place_.set_device(ordinal);
    set_torch_noise(params_.torch_noise, params_.shaping, device);
    return pygen::cuda::beam_step_workspace(params_, device);
  }
  void set_workspace(uintptr_t address) { place_.set_workspace(address); }
  int64_t generator_increment() const { return params_.torch_noise.increment; }

  void launch_on(uintptr_t stream, uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, uint64_t seed,
                 uint64_t offset, uintptr_t generator, int halves) const {
    BeamParams params = params_of_call(logits, logits_stride, step, length, halves);
    set_generator(params.torch_noise, seed, offset, generator);
    check_launch(pygen::cuda::beam_step(params, place_.on_stream(stream)));
  }
#endif

 private:
  BeamParams params_of_call(uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, int halves) const {
    BeamParams params = params_;
    set_call(params.shaping, logits, logits_stride, length);
    params.step = step;
    params.select = (halves & 1) != 0;
    params.advance = (halves & 2) != 0;
    if (params.steps == nullptr && (step < 0 || step >= params.max_new_tokens))
      throw std::invalid_argument("step is out of range");
    return params;
  }

  template <typename T>
  T* required(Arguments& arguments, const char* name) {
    T* result = arguments.take_pointer<T>(name);
    if (result == nullptr && params_.shaping.rows > 0) throw std::invalid_argument(std::string(name) + " is null");
    return result;
  }

  BeamParams params_;
#if PYGEN_CUDA
  CudaPlace place_;
#endif
};

// Of a tensor: pointer, heads, head_dim, element size, and the strides of rows, heads and positions.
using CacheLayout = std::array<int64_t, 7>;

std::vector<pygen::CacheTensor> cache_tensors(const std::vector<CacheLayout>& layouts) {
  std::vector<pygen::CacheTensor> tensors;
  for (const auto& [address, heads, head_dim, element_size, row_stride, head_stride, position_stride] : layouts)
    tensors.push_back({pointer<char>(static_cast<uintptr_t>(address)), heads, head_dim, element_size, row_stride,
                       head_stride, position_stride});
  return tensors;
}

pygen::ReorderParams reorder_params(const std::vector<pygen::CacheTensor>& tensors, int64_t rows, uintptr_t beam_idx,
                                    int64_t start, uintptr_t starts, uintptr_t span, int64_t length) {
  pygen::ReorderParams params;
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
  const std::vector<pygen::CacheTensor> tensors = cache_tensors(layouts);
  pygen::ReorderParams params = reorder_params(tensors, rows, beam_idx, start, starts, span, length);
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  pygen::cpu::implementation().reorder_cache(params);
}

pygen::FinalizeParams finalize_params(Arguments arguments) {
  pygen::FinalizeParams params;
  params.batch_size = arguments.take<int64_t>("batch_size");
  params.num_beams = arguments.take<int64_t>("num_beams");
  params.num_return_sequences = arguments.take<int64_t>("num_return_sequences");
  params.prompt_length = arguments.take<int64_t>("prompt_length");
  params.width = arguments.take<int64_t>("width");
  params.pad_token_id = arguments.take<int64_t>("pad_token_id");
  params.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
  params.token_ids_stride = arguments.take<int64_t>("token_ids_stride");
  params.step_tokens = arguments.take_pointer<int64_t>("step_tokens_ptr");
  params.step_parents = arguments.take_pointer<int32_t>("step_parents_ptr");
  params.finished_steps = arguments.take_pointer<int64_t>("finished_steps_ptr");
  params.finished_tokens = arguments.take_pointer<int64_t>("finished_tokens_ptr");
  params.finished_parents = arguments.take_pointer<int32_t>("finished_parents_ptr");
  params.sequences = arguments.take_pointer<int64_t>("sequences_ptr");
  params.beam_indices = arguments.take_pointer<int32_t>("beam_indices_ptr");
  arguments.finish();
  if (params.batch_size < 0 || params.num_beams < 1 || params.prompt_length < 0 || params.width < 0)
    throw std::invalid_argument("a size is negative");
  return params;
}

void beam_finalize(int threads, const py::kwargs& kwargs) {
  pygen::FinalizeParams params = finalize_params(Arguments(kwargs));
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  pygen::cpu::implementation().beam_finalize(params);
}

pygen::LogprobParams logprob_params(Arguments arguments) {
  pygen::LogprobParams params;
  params.rows = arguments.take<int64_t>("rows");
  params.vocab_size = arguments.take<int64_t>("vocab_size");
  params.dtype = static_cast<pygen::DType>(arguments.take<int>("dtype"));
  params.logits = arguments.take_pointer<void>("logits_ptr");
  params.logits_stride = arguments.take<int64_t>("logits_stride");
  params.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
  params.token_ids_stride = arguments.take<int64_t>("token_ids_stride");
  params.num_tokens = arguments.take<int64_t>("num_tokens");
  params.num_top = arguments.take<int64_t>("num_top");
  params.logprobs = arguments.take_pointer<float>("logprobs_ptr");
  params.top_ids = arguments.take_pointer<int64_t>("top_ids_ptr");
  params.top_logprobs = arguments.take_pointer<float>("top_logprobs_ptr");
  params.status = arguments.take_pointer<int32_t>("status_ptr");
  arguments.finish();
  if (params.rows < 0 || params.vocab_size < 1 || params.num_tokens < 0 || params.num_top < 0)
    throw std::invalid_argument("a size is negative");
  if (params.rows > 0 && (params.logits == nullptr || params.status == nullptr))
    throw std::invalid_argument("logits or status is a null pointer");
  return params;
}

void token_logprobs(int threads, const py::kwargs& kwargs) {
  pygen::LogprobParams params = logprob_params(Arguments(kwargs));
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  pygen::cpu::implementation().token_logprobs(params);
}

pygen::DraftParams draft_params(Arguments arguments) {
  pygen::DraftParams params;
  params.rows = arguments.take<int64_t>("rows");
  params.vocab_size = arguments.take<int64_t>("vocab_size");
  params.num_drafts = arguments.take<int64_t>("num_drafts");
  params.target_dtype = static_cast<pygen::DType>(arguments.take<int>("target_dtype"));
  params.target = arguments.take_pointer<void>("target_ptr");
  params.target_row_stride = arguments.take<int64_t>("target_row_stride");
  params.target_position_stride = arguments.take<int64_t>("target_position_stride");
  params.draft_dtype = static_cast<pygen::DType>(arguments.take<int>("draft_dtype"));
  params.draft = arguments.take_pointer<void>("draft_ptr");
  params.draft_row_stride = arguments.take<int64_t>("draft_row_stride");
  params.draft_position_stride = arguments.take<int64_t>("draft_position_stride");
  params.draft_ids = arguments.take_pointer<int64_t>("draft_ids_ptr");
  params.draft_ids_stride = arguments.take<int64_t>("draft_ids_stride");
  params.lengths = arguments.take_knob<int64_t>("lengths");
  params.temperature = arguments.take_knob<float>("temperature");
  params.rng = static_cast<pygen::Rng>(arguments.take<int>("rng"));
  params.step = {arguments.take<int64_t>("step"), arguments.take_pointer<int64_t>("steps_ptr")};
  params.seeds = arguments.take_pointer<int64_t>("seeds_ptr");
  params.uniforms = arguments.take_pointer<float>("uniforms_ptr");
  params.noise = arguments.take_pointer<float>("noise_ptr");
  params.noise_stride = arguments.take<int64_t>("noise_stride");
  params.accepted = arguments.take_pointer<int64_t>("accepted_ptr");
  params.token_ids = arguments.take_pointer<int64_t>("token_ids_ptr");
  params.status = arguments.take_pointer<int32_t>("status_ptr");
  arguments.finish();
  if (params.rows < 0 || params.vocab_size < 1 || params.num_drafts < 0)
    throw std::invalid_argument("a size is negative");
  if (params.rows > 0) {
    if (params.target == nullptr || params.accepted == nullptr || params.token_ids == nullptr ||
        params.status == nullptr)
      throw std::invalid_argument("target, accepted, token_ids or status is a null pointer");
    if (params.rng == pygen::Rng::kTorch) throw std::invalid_argument("verify_draft has no torch noise");
    check_noise(params.rng, nullptr, params.noise, params.seeds);
  }
  return params;
}

void verify_draft(int threads, const py::kwargs& kwargs) {
  pygen::DraftParams params = draft_params(Arguments(kwargs));
  params.threads = std::max(1, threads);
  py::gil_scoped_release release;
  pygen::cpu::implementation().verify_draft(params);
}

#if PYGEN_CUDA
void launch_reorder_cache(int ordinal, uintptr_t stream, const std::vector<CacheLayout>& layouts, int64_t rows,
                          uintptr_t beam_idx, int64_t start, uintptr_t starts, uintptr_t span, int64_t length) {
  const std::vector<pygen::CacheTensor> tensors = cache_tensors(layouts);
  check_launch(pygen::cuda::reorder_cache(reorder_params(tensors, rows, beam_idx, start, starts, span, length),
                                          {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}

void launch_beam_finalize(int ordinal, uintptr_t stream, const py::kwargs& kwargs) {
  check_launch(pygen::cuda::beam_finalize(finalize_params(Arguments(kwargs)),
                                          {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}

void launch_token_logprobs(int ordinal, uintptr_t stream, const py::kwargs& kwargs) {
  check_launch(pygen::cuda::token_logprobs(logprob_params(Arguments(kwargs)),
                                           {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}

void launch_verify_draft(int ordinal, uintptr_t stream, const py::kwargs& kwargs) {
  check_launch(pygen::cuda::verify_draft(draft_params(Arguments(kwargs)),
                                         {device_of(ordinal), pointer<CUstream_st>(stream), nullptr}));
}
#endif

py::dict build_info() {
  py::list isas;
  std::istringstream names(PYGEN_CPU_ISAS);
  for (std::string name; std::getline(names, name, ',');) isas.append(name);
  py::dict info;
  info["version"] = PYGEN_VERSION;
  info["compiler"] = PYGEN_COMPILER;
  info["cpu_isas"] = isas;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda"] = PYGEN_CUDA != 0;
  info["cuda_reason"] = PYGEN_CUDA_REASON;
  info["nvcc_version"] = PYGEN_NVCC_VERSION;
  return info;
}

#if PYGEN_CUDA
// What the ops on a GPU call: the bytes of workspace for a device, the workspace, and the launch.
template <typename Plan>
py::class_<Plan>& def_launches(py::class_<Plan>& plan) {
  plan.def("set_device", &Plan::set_device).def("set_workspace", &Plan::set_workspace);
  return plan.def("launch_on", &Plan::launch_on);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pygen's compiled kernels. Private: a wrong pointer here is a crash. Use pygen.ops.";
  m.def("build_info", &build_info);
  m.def("cpu_isa", [] { return std::string(pygen::cpu::implementation().name); });
  m.def("set_cpu_isa", &pygen::cpu::set_implementation, py::arg("name"));
  // Local to the module: a second build of these kernels may be loaded beside it.
  py::class_<SamplePlan> sample_plan(m, "SamplePlan", py::module_local());
  py::class_<ProcessPlan> process_plan(m, "ProcessPlan", py::module_local());
  py::class_<BeamPlan> beam_plan(m, "BeamPlan", py::module_local());
  sample_plan.def(py::init<const py::kwargs&>()).def("run", &SamplePlan::run).def("run_with", &SamplePlan::run_with);
  process_plan.def(py::init<const py::kwargs&>()).def("run", &ProcessPlan::run).def("run_with", &ProcessPlan::run_with);
  beam_plan.def(py::init<const py::kwargs&>()).def("run", &BeamPlan::run);
#if PYGEN_CUDA
  def_launches(sample_plan).def_property_readonly("generator_increment", &SamplePlan::generator_increment);
  def_launches(process_plan);
  def_launches(beam_plan).def_property_readonly("generator_increment", &BeamPlan::generator_increment);
  m.def("launch_reorder_cache", &launch_reorder_cache);
  m.def("launch_beam_finalize", &launch_beam_finalize);
  m.def("launch_token_logprobs", &launch_token_logprobs);
  m.def("launch_verify_draft", &launch_verify_draft);
#endif
  m.def("reorder_cache", &reorder_cache);
  m.def("beam_finalize", &beam_finalize);
  m.def("token_logprobs", &token_logprobs);
  m.def("verify_draft", &verify_draft);
}
