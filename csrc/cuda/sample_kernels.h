// Launches of the kernels of `sample`, one kind per file. sample.cu chooses among them.
#pragma once

#include "cuda/launchers.h"

namespace pygen::cuda {

Error sample_listed(const SampleParams& params, const Context& context);
Error sample_plain(const SampleParams& params, const Context& context);
Error sample_any(const SampleParams& params, const Context& context);
// In two kernels: rows of the kind kListed.
Error sample_many(const SampleParams& params, const Context& context);

}  // namespace pygen::cuda
