// One function for each op, which adds its class or function to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace pygen::bindings {

void bind_sample(pybind11::module_& m);
void bind_process_logits(pybind11::module_& m);
void bind_beam_step(pybind11::module_& m);
void bind_reorder_cache(pybind11::module_& m);
void bind_beam_finalize(pybind11::module_& m);
void bind_token_logprobs(pybind11::module_& m);
void bind_verify_draft(pybind11::module_& m);

}  // namespace pygen::bindings
