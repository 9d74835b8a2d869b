// BackendFactory: the backend of each rank, on the device that the user named.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"

namespace shoal {

/// A device by name: "auto", "cpu", "cuda" or "cuda:N".
struct DeviceName {
  enum class Kind { kAuto, kCpu, kCuda };

  Kind kind = Kind::kAuto;
  int ordinal = 0;  // of a CUDA device

  /// INVALID_ARGUMENT says what is expected.
  static absl::StatusOr<DeviceName> Parse(std::string_view name);
};

/// What all ranks of this process share out among them.
struct BackendFactoryConfig {
  std::string device = "auto";
  int num_ranks = 1;
  int num_threads = 0;  // CPU: compute threads of all ranks together; 0: one per core
  double gpu_memory_utilization = 0.9;  // share of a GPU's memory that we may take
};

/// Made once, before any rank takes its part of the machine. Thread: any.
class BackendFactory {
 public:
  /// Finds out what the device's name means on this machine. INVALID_ARGUMENT: there is no such
  /// name. UNAVAILABLE: a CUDA device was asked for and there is none, or not with so many ranks.
  static absl::StatusOr<BackendFactory> Create(const BackendFactoryConfig& config);

  /// The backend of one rank, to be called by its worker. Without a communicator: of the group of
  /// one. RESOURCE_EXHAUSTED or UNAVAILABLE say why there is none.
  absl::StatusOr<Backend> Make(int rank, std::unique_ptr<Communicator> communicator) const;

  /// "cpu" or "cuda:0", and for "auto" why.
  const std::string& description() const { return description_; }
  bool is_cpu() const { return device_.kind == DeviceName::Kind::kCpu; }

 private:
  BackendFactoryConfig config_;
  DeviceName device_;  // never kAuto
  std::string description_;
  CpuBackendOptions machine_;  // as it was before any rank took its part
};

}  // namespace shoal
