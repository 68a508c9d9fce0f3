// Stretches of global memory, the logits above all, of which every load is counted and no kernel may write.
#pragma once

#include <cstddef>
#include <string>

namespace pygen::cuda::host {

struct LoadCount {
  unsigned long loads = 0;
  unsigned long bytes = 0;
};

void watch(const std::string& name, const void* begin, size_t bytes);
void forget_watched();
// std::out_of_range for a name that is not watched.
LoadCount count_of(const std::string& name);

void begin_watching();
// Reports what a kernel wrote.
void check_watched();

}  // namespace pygen::cuda::host
