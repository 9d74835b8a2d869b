// The module's one door. The program loads it at run time, so that it also runs where there is no
// driver, and where there was no CUDA toolkit when it was built.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_backend.h"

namespace shoal::cuda {

/// What the module exports under the name `kShoalCudaModule`. Program and module come from one
/// build: `build_id` is the same in both, or they must not be used together.
struct Module {
  const char* build_id = nullptr;
  absl::StatusOr<int> (*count_devices)() = nullptr;
  absl::StatusOr<Backend> (*make_backend)(const CudaBackendOptions& options,
                                          std::unique_ptr<Communicator> communicator) = nullptr;
};

}  // namespace shoal::cuda
