#include <pybind11/stl.h>
#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/shaping.h"
#include "common/row_seed.h"
#include "common/sample_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

// Seeds of the rows, where the call has one for all.
std::vector<int64_t> row_seeds(const std::optional<uint64_t>& seed, int64_t rows) {
  std::vector<int64_t> seeds(seed ? static_cast<size_t>(rows) : 0);
  for (size_t row = 0; row < seeds.size(); ++row)
    seeds[row] = static_cast<int64_t>(row_seed(*seed, static_cast<int64_t>(row)));
  return seeds;
}

// Checked arguments. Threads may share a plan, as its calls do not change it: each copies the parameters and sets its
// own.
class SamplePlan {
 public:
  explicit SamplePlan(const py::kwargs& kwargs) {
    Arguments arguments(kwargs);
    params_.shaping = take_shaping(arguments);
    params_.rng = static_cast<Rng>(arguments.take<int>("rng"));
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
    KeptParams& kept = params_.kept;
    kept.limit = arguments.take<int64_t>("kept_limit");
    kept.token_ids = arguments.take_pointer<int32_t>("kept_ids_ptr");
    kept.counts = arguments.take_pointer<int32_t>("kept_counts_ptr");
    kept.log_mass = arguments.take_pointer<float>("log_mass_ptr");
    StateParams& state = params_.state;
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

  // With the call's steps, tables, seeds and results. outputs: token_ids, status, logprobs, top_ids, top_logprobs, and
  // kept.token_ids, kept.counts, kept.log_mass.
  void run_with(uintptr_t logits, int64_t logits_stride, int64_t step, uintptr_t steps, int threads,
                uintptr_t generator_state, const std::optional<uint64_t>& seed, const std::optional<Tables>& tables,
                const std::array<uintptr_t, 8>& outputs) const {
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
    params.kept.token_ids = pointer<int32_t>(outputs[5]);
    params.kept.counts = pointer<int32_t>(outputs[6]);
    params.kept.log_mass = pointer<float>(outputs[7]);
    draw(params);
  }

#if PYGEN_CUDA
  size_t set_device(int ordinal) { return set_drawing_device(context_, params_, ordinal, cuda::sample_workspace); }
  void set_workspace(uintptr_t address) { context_.set_workspace(address); }
  int64_t generator_increment() const { return params_.torch_noise.increment; }

  void launch_on(uintptr_t stream, uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, uint64_t seed,
                 uint64_t offset, uintptr_t generator) const {
    SampleParams params = params_of_call(logits, logits_stride, step, length);
    set_generator(params.torch_noise, seed, offset, generator);
    check_launch(cuda::sample(params, context_.on_stream(stream)));
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
    launch(cpu::implementation().sample, params);
  }

  SampleParams params_;
#if PYGEN_CUDA
  CudaContext context_;
#endif
};

}  // namespace

void bind_sample(py::module_& m) {
  py::class_<SamplePlan> plan(m, "SamplePlan", py::module_local());
  plan.def(py::init<const py::kwargs&>()).def("run", &SamplePlan::run).def("run_with", &SamplePlan::run_with);
#if PYGEN_CUDA
  def_launches(plan).def_property_readonly("generator_increment", &SamplePlan::generator_increment);
#endif
}

}  // namespace pygen::bindings
