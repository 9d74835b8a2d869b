// The CPU backend: plain loops over float32 and bfloat16. It is the reference for every other
// backend and a product of its own.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace shoal {

struct CpuBackendOptions {
  int num_threads = 0;  // compute threads, the caller's included; 0: one per core we may use
  int64_t memory_limit_bytes = 0;  // for tensors, less the ops' working memory; 0: memory available
                                   // at the start
};

/// The backend of one rank; without a communicator, of the group of one. Ranks of one process each
/// need their share of the memory as a limit. RESOURCE_EXHAUSTED or INVALID_ARGUMENT name the
/// option at fault.
absl::StatusOr<Backend> MakeCpuBackend(const CpuBackendOptions& options,
                                       std::unique_ptr<Communicator> communicator = nullptr);

}  // namespace shoal
