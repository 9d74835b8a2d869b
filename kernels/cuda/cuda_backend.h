// The CUDA backend: NVIDIA GPUs of compute capability 8.0 and later, by our own kernels.
#pragma once

#include <chrono>
#include <memory>

#include "kernels/backend.h"

namespace shoal::cuda {

struct CudaBackendOptions {
  int ordinal = 0;                  // of the device, as the CUDA runtime counts them
  double memory_utilization = 0.9;  // share of the device's memory that tensors and the ops'
                                    // working memory may take, if as much is free; the rest is for
                                    // kernels and graphs
  // What runs longer than this has failed.
  std::chrono::milliseconds step_timeout = std::chrono::minutes(1);
};

/// The number of CUDA devices, 1 or more. UNAVAILABLE says in one sentence why there is none.
/// Thread: any.
absl::StatusOr<int> CountDevices();

/// The backend of one rank; without a communicator, of the group of one. The calling thread is the
/// rank's worker: the device becomes its current one. INVALID_ARGUMENT names the option at fault.
/// UNAVAILABLE: no driver, no such device, or one that is too old.
absl::StatusOr<Backend> MakeCudaBackend(const CudaBackendOptions& options,
                                        std::unique_ptr<Communicator> communicator = nullptr);

}  // namespace shoal::cuda
