#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/comm/single_rank.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"

namespace shoal::cuda {
namespace {

absl::Status CheckOptions(const CudaBackendOptions& options) {
  if (options.ordinal < 0) {
    return absl::InvalidArgumentError(
        fmt::format("ordinal is {}, must be 0 or more", options.ordinal));
  }
  if (!(options.memory_utilization > 0 && options.memory_utilization <= 1)) {
    return absl::InvalidArgumentError(fmt::format(
        "memory_utilization is {}, must be above 0 and at most 1", options.memory_utilization));
  }
  if (options.step_timeout.count() <= 0) {
    return absl::InvalidArgumentError(
        fmt::format("step_timeout is {} ms, must be above 0", options.step_timeout.count()));
  }
  return absl::OkStatus();
}

/// Share of the device's memory that is left for kernels and graphs, however much others have
/// taken.
constexpr double kLeftShare = 0.02;

absl::Status Unavailable(int ordinal, const char* call, cudaError_t error) {
  cudaGetLastError();  // also the runtime's memory of it
  return absl::UnavailableError(fmt::format("CUDA device {} cannot be used: {} in {}", ordinal,
                                            cudaGetErrorName(error), call));
}

/// Runs a kernel: a device for which the module has no code says so here, not once the weights are
/// loaded.
absl::Status TryKernel(CudaStream& stream, DeviceMemory& memory, Ops& ops) {
  ASSIGN_OR_RETURN(void* const data,
                   memory.Allocate(sizeof(float), Contents::kAny, "a first kernel"));
  ops.FillNormal(Tensor(data, DType::kFloat32, {1}), /*seed=*/0, /*stddev=*/1);
  memory.Free(data);
  return stream.status();
}

/// "13.0" for 13000.
std::string VersionName(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

/// OK if the kernels run on this device.
absl::Status CheckDevice(int ordinal) {
  constexpr int kOldestMajor = 8;
  ASSIGN_OR_RETURN(const int num_devices, CountDevices());
  if (ordinal >= num_devices) {
    return absl::UnavailableError(
        fmt::format("there is no CUDA device {}: this machine has {}", ordinal, num_devices));
  }
  int major = 0, minor = 0;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
      error != cudaSuccess) {
    return Unavailable(ordinal, "cudaDeviceGetAttribute", error);
  }
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (major < kOldestMajor) {
    return absl::UnavailableError(
        fmt::format("CUDA device {} has compute capability {}.{}, {}.0 or later is needed", ordinal,
                    major, minor, kOldestMajor));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> CountDevices() {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return absl::UnavailableError("this machine has no NVIDIA driver");
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();  // also the runtime's memory of it
  if (error == cudaErrorInsufficientDriver) {
    cudaRuntimeGetVersion(&runtime);
    return absl::UnavailableError(fmt::format("the NVIDIA driver knows CUDA {}, {} is needed",
                                              VersionName(driver), VersionName(runtime)));
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return absl::UnavailableError("this machine has no CUDA device");
  }
  if (error != cudaSuccess) {
    return absl::UnavailableError(
        fmt::format("the NVIDIA driver gives no devices: {}", cudaGetErrorName(error)));
  }
  return count;
}

absl::StatusOr<Backend> MakeCudaBackend(const CudaBackendOptions& options,
                                        std::unique_ptr<Communicator> communicator) {
  RETURN_IF_ERROR(CheckOptions(options));
  RETURN_IF_ERROR(CheckDevice(options.ordinal));
  if (const cudaError_t error = cudaSetDevice(options.ordinal); error != cudaSuccess) {
    return Unavailable(options.ordinal, "cudaSetDevice", error);
  }
  size_t free_bytes = 0, total_bytes = 0;
  if (const cudaError_t error = cudaMemGetInfo(&free_bytes, &total_bytes); error != cudaSuccess) {
    return Unavailable(options.ordinal, "cudaMemGetInfo", error);
  }
  const auto free = static_cast<double>(free_bytes), total = static_cast<double>(total_bytes);
  const double limit_bytes =
      std::clamp(free - kLeftShare * total, 0.0, options.memory_utilization * total);
  ASSIGN_OR_RETURN(std::shared_ptr<CudaStream> stream,
                   CudaStream::Create(options.ordinal, options.step_timeout));
  const auto memory = std::make_shared<DeviceMemory>(stream, static_cast<int64_t>(limit_bytes));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CudaDevice::Create(stream, memory));
  auto ops = std::make_unique<CudaOps>(stream, memory);
  RETURN_IF_ERROR(TryKernel(*stream, *memory, *ops));
  if (communicator == nullptr) communicator = std::make_unique<SingleRank>();
  return Backend{
      .device = std::move(device), .ops = std::move(ops), .communicator = std::move(communicator)};
}

}  // namespace shoal::cuda
