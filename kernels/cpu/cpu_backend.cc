#include "kernels/cpu/cpu_backend.h"

#include <utility>

#include "kernels/comm/single_rank.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/machine.h"

namespace shoal {

absl::StatusOr<Backend> MakeCpuBackend(const CpuBackendOptions& options,
                                       std::unique_ptr<Communicator> communicator) {
  if (options.num_threads < 0 || options.num_threads > ThreadPool::kMaxThreads) {
    return absl::InvalidArgumentError(fmt::format("num_threads is {}, must be from 0 to {}",
                                                  options.num_threads, ThreadPool::kMaxThreads));
  }
  if (options.memory_limit_bytes < 0) {
    return absl::InvalidArgumentError(
        fmt::format("memory_limit_bytes is {}, must be 0 or more", options.memory_limit_bytes));
  }
  const int num_threads = options.num_threads > 0
                              ? options.num_threads
                              : std::min(AvailableCores(), ThreadPool::kMaxThreads);
  const int64_t limit_bytes =
      options.memory_limit_bytes > 0 ? options.memory_limit_bytes : AvailableMemoryBytes();
  const auto pool = std::make_shared<ThreadPool>(num_threads);
  const auto used = std::make_shared<UsedBytes>(0);
  if (communicator == nullptr) communicator = std::make_unique<SingleRank>();
  return Backend{.device = std::make_unique<CpuDevice>(pool, limit_bytes, used),
                 .ops = std::make_unique<CpuOps>(pool, BestIsa(), used),
                 .communicator = std::move(communicator)};
}

}  // namespace shoal
