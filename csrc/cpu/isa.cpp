#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace pygen::cpu {
namespace {

bool always() { return true; }

#if defined(PYGEN_HAVE_AVX2)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("f16c");
}
#endif

#if defined(PYGEN_HAVE_AVX512)
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// Best first.
constexpr Implementation kImplementations[] = {
#if defined(PYGEN_HAVE_AVX512)
    {"avx512", has_avx512, avx512::sample, avx512::process_logits, avx512::reorder_cache, avx512::beam_finalize,
     avx512::beam_step, avx512::token_logprobs, avx512::verify_draft},
#endif
#if defined(PYGEN_HAVE_AVX2)
    {"avx2", has_avx2, avx2::sample, avx2::process_logits, avx2::reorder_cache, avx2::beam_finalize, avx2::beam_step,
     avx2::token_logprobs, avx2::verify_draft},
#endif
    {"generic", always, generic::sample, generic::process_logits, generic::reorder_cache, generic::beam_finalize,
     generic::beam_step, generic::token_logprobs, generic::verify_draft},
};

const Implementation& find(const std::string& name, const std::string& source) {
  std::string choices;
  for (const Implementation& candidate : kImplementations) {
    if (!candidate.runs_here()) continue;
    if (name == candidate.name) return candidate;
    choices += choices.empty() ? "" : ", ";
    choices += std::string("\"") + candidate.name + "\"";
  }
  throw std::invalid_argument("`" + source + "` must be one of " + choices + " on this machine, got \"" + name + "\"");
}

const Implementation*& chosen() {
  static const Implementation* implementation = nullptr;
  return implementation;
}

}  // namespace

const Implementation& implementation() {
  if (chosen() == nullptr) {
    const char* name = std::getenv("PYGEN_CPU_ISA");
    if (name != nullptr && *name != '\0') {
      chosen() = &find(name, "PYGEN_CPU_ISA");
    } else {
      for (const Implementation& candidate : kImplementations) {
        if (!candidate.runs_here()) continue;
        chosen() = &candidate;
        break;
      }
    }
  }
  return *chosen();
}

void set_implementation(const std::string& name) { chosen() = &find(name, "cpu_isa"); }

}  // namespace pygen::cpu
