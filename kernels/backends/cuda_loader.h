// Loads the module with the CUDA backend.
#pragma once

#include "kernels/cuda/module.h"
#include "kernels/status.h"

namespace shoal {

/// The module, from the program's own folder or where the system looks for libraries; it is loaded
/// once and stays. UNAVAILABLE: there is none, with the loader's reason. Thread: any.
absl::StatusOr<const cuda::Module*> LoadCudaModule();

}  // namespace shoal
