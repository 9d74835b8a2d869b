// CpuDevice: system memory as a Device.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/device.h"

namespace shoal {

/// Weights lie row-major in the storage type: a Weight as [out_features, in_features]; FfnWeights
/// as gate_up [num_experts, 2 * width, hidden_size], the gate's rows before the up rows, and down
/// [num_experts, hidden_size, width]. Nothing is ever pending: copies are done when they return.
class CpuDevice final : public Device {
 public:
  /// Others may add to `used`, too.
  CpuDevice(std::shared_ptr<ThreadPool> pool, int64_t memory_limit_bytes,
            std::shared_ptr<UsedBytes> used);
  ~CpuDevice() override;

  using Device::Allocate;
  absl::StatusOr<Tensor> Allocate(DType dtype, std::span<const int64_t> shape) override;
  int64_t FreeBytes() const override { return std::max<int64_t>(memory_limit_bytes_ - *used_, 0); }
  absl::StatusOr<Tensor> LoadTensor(const Tensor& host, DType dtype) override;
  absl::StatusOr<Weight> AllocateWeight(int64_t out_features, int64_t in_features,
                                        DType dtype) override;
  absl::StatusOr<FfnWeights> AllocateFfn(int64_t num_experts, int64_t hidden_size, int64_t width,
                                         DType dtype) override;
  absl::StatusOr<Weight> LoadWeight(std::span<const Tensor> row_blocks, DType dtype) override;
  absl::StatusOr<FfnWeights> LoadFfn(std::span<const HostFfn> experts, DType dtype) override;
  void CopyFromHost(const void* host, const Tensor& device) override;
  void CopyToHost(const Tensor& device, void* host) override;
  /// Nothing is gained: ops run when they are called.
  absl::StatusOr<std::unique_ptr<Graph>> Record(const std::function<void()>& enqueue) override;
  void Replay(const Graph& graph) override;
  int64_t Mark() override { return 0; }
  absl::Status Wait(int64_t mark) override { return absl::OkStatus(); }

 private:
  struct Mapping {
    void* data = nullptr;
    int64_t bytes = 0;
  };

  void Convert(const Tensor& from, const Tensor& to);

  const std::shared_ptr<ThreadPool> pool_;
  const int64_t memory_limit_bytes_;
  const std::shared_ptr<UsedBytes> used_;
  std::vector<Mapping> mappings_;
};

}  // namespace shoal
