#include "kernels/backends/backend_factory.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "kernels/backends/cuda_loader.h"
#include "kernels/cpu/machine.h"
#include "kernels/cpu/thread_pool.h"

namespace shoal {
namespace {

constexpr std::string_view kCudaPrefix = "cuda:";

/// An even part of the threads, at least one, and of the memory.
CpuBackendOptions PartOf(const CpuBackendOptions& whole, int rank, int num_ranks) {
  const int num_threads = whole.num_threads / num_ranks + (rank < whole.num_threads % num_ranks);
  return {.num_threads = std::max(num_threads, 1),
          .memory_limit_bytes = whole.memory_limit_bytes / num_ranks};
}

/// OK if there is a CUDA device of this number for the one rank that may use it.
absl::Status CheckCuda(const DeviceName& device, int num_ranks) {
  ASSIGN_OR_RETURN(const cuda::Module* module, LoadCudaModule());
  ASSIGN_OR_RETURN(const int num_devices, module->count_devices());
  if (device.ordinal >= num_devices) {
    return absl::UnavailableError(fmt::format("device cuda:{} is not there: this machine has {}",
                                              device.ordinal, num_devices));
  }
  if (num_ranks > 1) {
    return absl::UnavailableError(fmt::format(
        "{} ranks cannot share a CUDA device: set expert_parallel to 1 or device to cpu",
        num_ranks));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DeviceName> DeviceName::Parse(std::string_view name) {
  if (name == "auto") return DeviceName{.kind = Kind::kAuto};
  if (name == "cpu") return DeviceName{.kind = Kind::kCpu};
  if (name == "cuda") return DeviceName{.kind = Kind::kCuda};
  if (name.starts_with(kCudaPrefix)) {
    DeviceName device = {.kind = Kind::kCuda};
    const std::string_view digits = name.substr(kCudaPrefix.size());
    const char* end = digits.data() + digits.size();
    const auto [rest, error] = std::from_chars(digits.data(), end, device.ordinal);
    if (error == std::errc() && rest == end && device.ordinal >= 0) return device;
  }
  return absl::InvalidArgumentError(
      fmt::format("device is \"{}\", expected auto, cpu, cuda or cuda:N", name));
}

absl::StatusOr<BackendFactory> BackendFactory::Create(const BackendFactoryConfig& config) {
  BackendFactory factory;
  factory.config_ = config;
  ASSIGN_OR_RETURN(factory.device_, DeviceName::Parse(config.device));
  if (factory.device_.kind != DeviceName::Kind::kCpu) {
    const absl::Status status = CheckCuda(factory.device_, config.num_ranks);
    if (status.ok()) {
      factory.device_.kind = DeviceName::Kind::kCuda;
      factory.description_ = fmt::format("cuda:{}", factory.device_.ordinal);
      return factory;
    }
    if (factory.device_.kind == DeviceName::Kind::kCuda) return status;
    factory.description_ = fmt::format("cpu ({})", std::string(status.message()));
  } else {
    factory.description_ = "cpu";
  }
  factory.device_.kind = DeviceName::Kind::kCpu;
  const int num_cores = std::min(AvailableCores(), ThreadPool::kMaxThreads);
  factory.machine_ = {.num_threads = config.num_threads > 0 ? config.num_threads : num_cores,
                      .memory_limit_bytes = AvailableMemoryBytes()};
  return factory;
}

absl::StatusOr<Backend> BackendFactory::Make(int rank,
                                             std::unique_ptr<Communicator> communicator) const {
  if (is_cpu()) {
    return MakeCpuBackend(PartOf(machine_, rank, config_.num_ranks), std::move(communicator));
  }
  ASSIGN_OR_RETURN(const cuda::Module* module, LoadCudaModule());
  return module->make_backend(
      {.ordinal = device_.ordinal, .memory_utilization = config_.gpu_memory_utilization},
      std::move(communicator));
}

}  // namespace shoal
