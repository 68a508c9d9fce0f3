// Why a cluster cannot go on.
#pragma once

namespace pygen::cuda::host {

// One report for every barrier or function of a warp that was reached by some and waits for others.
void report_who_waits();

}  // namespace pygen::cuda::host
