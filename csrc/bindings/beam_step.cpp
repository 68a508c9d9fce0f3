#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "bindings/shaping.h"
#include "common/beam_params.h"
#include "cpu/isa.h"
#if PYGEN_CUDA
#include "bindings/cuda_context.h"
#endif

namespace pygen::bindings {

namespace {

class BeamPlan {
 public:
  explicit BeamPlan(const py::kwargs& kwargs) {
    Arguments arguments(kwargs);
    BeamParams& p = params_;
    p.shaping = take_shaping(arguments);
    p.normalized = arguments.take<bool>("normalized");
    p.do_sample = arguments.take<bool>("do_sample");
    p.rng = static_cast<Rng>(arguments.take<int>("rng"));
    p.seeds = arguments.take_pointer<int64_t>("seeds_ptr");
    p.noise = arguments.take_pointer<float>("noise_ptr");
    p.noise_stride = arguments.take<int64_t>("noise_stride");
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
    launch(cpu::implementation().beam_step, params);
  }

#if PYGEN_CUDA
  size_t set_device(int ordinal) { return set_drawing_device(context_, params_, ordinal, cuda::beam_step_workspace); }
  void set_workspace(uintptr_t address) { context_.set_workspace(address); }
  int64_t generator_increment() const { return params_.torch_noise.increment; }

  void launch_on(uintptr_t stream, uintptr_t logits, int64_t logits_stride, int64_t step, int64_t length, uint64_t seed,
                 uint64_t offset, uintptr_t generator, int halves) const {
    BeamParams params = params_of_call(logits, logits_stride, step, length, halves);
    set_generator(params.torch_noise, seed, offset, generator);
    check_launch(cuda::beam_step(params, context_.on_stream(stream)));
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
  CudaContext context_;
#endif
};

}  // namespace

void bind_beam_step(py::module_& m) {
  py::class_<BeamPlan> plan(m, "BeamPlan", py::module_local());
  plan.def(py::init<const py::kwargs&>()).def("run", &BeamPlan::run);
#if PYGEN_CUDA
  def_launches(plan).def_property_readonly("generator_increment", &BeamPlan::generator_increment);
#endif
}

}  // namespace pygen::bindings
