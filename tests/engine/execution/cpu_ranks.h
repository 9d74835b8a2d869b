// CPU backends for the workers under test.
#pragma once

#include <memory>
#include <utility>

#include "engine/execution/worker.h"
#include "kernels/cpu/cpu_backend.h"

namespace shoal {

/// One thread and as much memory for each rank.
inline auto CpuRanks(int64_t memory_limit_bytes = int64_t{1} << 30) {
  return [memory_limit_bytes](int rank, std::unique_ptr<Communicator> communicator) {
    return MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = memory_limit_bytes},
                          std::move(communicator));
  };
}

}  // namespace shoal
