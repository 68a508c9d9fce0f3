// The device that the ops see.
#pragma once

#include <map>
#include <vector>

#include "cuda/kernel_limits.h"

namespace pygen::cuda::host {

const Device& current_device();
// Makes another GPU the current one: nothing that an earlier one has answered is true of it.
void set_device(const Device& device);
// The same with the same description, except for how many clusters of a size run at once.
void set_clusters(const std::map<unsigned, int>& clusters);

// How often the current GPU was asked.
struct Asked {
  int clusters = 0;
  int shared = 0;
};
Asked asked();
// Clusters of this size at once; bytes of shared memory that launches of a kernel may have.
int clusters_that_fit(unsigned cluster);
unsigned allowed_shared(Kernel kernel);

// One thread for each list of sizes allows them in turn. Returns how many were not allowed right after.
int allow_in_threads(const std::vector<std::vector<unsigned>>& sizes);

}  // namespace pygen::cuda::host
