// CudaDevice: a GPU's memory as a Device.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/host_transfers.h"
#include "kernels/device.h"

namespace shoal::cuda {

/// Weights lie in bfloat16, the only storage type: a Weight as [out_features, in_features];
/// FfnWeights as gate_up [num_experts, width / 8, 2 (gate, up), 8, hidden_size] and down
/// [num_experts, hidden_size, width]. INVALID_ARGUMENT: another dtype, or rows whose length is no
/// multiple of 8, which the kernels need.
class CudaDevice final : public Device {
 public:
  /// Others may use the stream and the memory, too, in the same thread. RESOURCE_EXHAUSTED: the
  /// system gives no pinned memory.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(std::shared_ptr<CudaStream> stream,
                                                            std::shared_ptr<DeviceMemory> memory);

  using Device::Allocate;
  absl::StatusOr<Tensor> Allocate(DType dtype, std::span<const int64_t> shape) override;
  int64_t FreeBytes() const override { return memory_->FreeBytes(); }
  absl::StatusOr<Tensor> LoadTensor(const Tensor& host, DType dtype) override;
  absl::StatusOr<Weight> AllocateWeight(int64_t out_features, int64_t in_features,
                                        DType dtype) override;
  absl::StatusOr<FfnWeights> AllocateFfn(int64_t num_experts, int64_t hidden_size, int64_t width,
                                         DType dtype) override;
  absl::StatusOr<Weight> LoadWeight(std::span<const Tensor> row_blocks, DType dtype) override;
  absl::StatusOr<FfnWeights> LoadFfn(std::span<const HostFfn> experts, DType dtype) override;
  void CopyFromHost(const void* host, const Tensor& device) override;
  void CopyToHost(const Tensor& device, void* host) override;
  absl::StatusOr<std::unique_ptr<Graph>> Record(const std::function<void()>& enqueue) override;
  void Replay(const Graph& graph) override;
  int64_t Mark() override { return stream_->Mark(); }
  absl::Status Wait(int64_t mark) override;

 private:
  CudaDevice(std::shared_ptr<CudaStream> stream, std::shared_ptr<DeviceMemory> memory,
             std::unique_ptr<HostTransfers> transfers);

  const std::shared_ptr<CudaStream> stream_;
  const std::shared_ptr<DeviceMemory> memory_;
  const std::unique_ptr<HostTransfers> transfers_;
};

}  // namespace shoal::cuda
