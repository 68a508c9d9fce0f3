// The CPU ops of every instruction set that was built, and the choice among them.
#pragma once

#include <string>

#include "common/beam_params.h"
#include "common/draft_params.h"
#include "common/finalize_params.h"
#include "common/logprob_params.h"
#include "common/reorder_params.h"
#include "common/sample_params.h"

#define PYGEN_DECLARE_OPS(isa)                      \
  namespace pygen::cpu::isa {                       \
  void sample(const SampleParams& params);          \
  void process_logits(const ProcessParams& params); \
  void reorder_cache(const ReorderParams& params);  \
  void beam_finalize(const FinalizeParams& params); \
  void beam_step(const BeamParams& params);         \
  void token_logprobs(const LogprobParams& params); \
  void verify_draft(const DraftParams& params);     \
  }
PYGEN_DECLARE_OPS(generic)
PYGEN_DECLARE_OPS(avx2)
PYGEN_DECLARE_OPS(avx512)
#undef PYGEN_DECLARE_OPS

namespace pygen::cpu {

struct Implementation {
  const char* name;
  bool (*runs_here)();
  void (*sample)(const SampleParams&);
  void (*process_logits)(const ProcessParams&);
  void (*reorder_cache)(const ReorderParams&);
  void (*beam_finalize)(const FinalizeParams&);
  void (*beam_step)(const BeamParams&);
  void (*token_logprobs)(const LogprobParams&);
  void (*verify_draft)(const DraftParams&);
};

// The best that runs here, unless PYGEN_CPU_ISA or set_implementation says otherwise. std::invalid_argument when that
// names one that was not built or does not run here.
const Implementation& implementation();
void set_implementation(const std::string& name);

}  // namespace pygen::cpu
