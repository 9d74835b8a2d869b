// Device: the memory of one rank and the way data gets into and out of it.
#pragma once

#include <initializer_list>
#include <span>

#include "kernels/status.h"
#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace shoal {

/// One expert's matrices in host memory, float32, bfloat16 or float16.
struct HostFfn {
  Tensor gate;  // [width, hidden_size]
  Tensor up;    // [width, hidden_size]
  Tensor down;  // [hidden_size, width]
};

/// Memory of one rank. Everything allocated lives as long as the device. Ops and copies run in the
/// order in which they were enqueued. Thread: the worker that owns the rank.
class Device {
 public:
  virtual ~Device() = default;

  /// Zeroed memory for `shape`, aligned to 256 bytes. RESOURCE_EXHAUSTED with the bytes asked for
  /// and those left. Not to be called inside a step.
  virtual absl::StatusOr<Tensor> Allocate(DType dtype, std::span<const int64_t> shape) = 0;
  absl::StatusOr<Tensor> Allocate(DType dtype, std::initializer_list<int64_t> shape) {
    return Allocate(dtype, std::span(shape.begin(), shape.size()));
  }

  /// Bytes that Allocate can still give, by this device's own estimate.
  virtual int64_t FreeBytes() const = 0;

  /// Copies a host tensor, converted to `dtype`. For vectors: norms, biases, tables.
  virtual absl::StatusOr<Tensor> LoadTensor(const Tensor& host, DType dtype) = 0;

  /// Stores the host matrices [rows_i, in_features] one under the other as one weight, converted to
  /// `dtype`. The host memory is not used after the call.
  virtual absl::StatusOr<Weight> LoadWeight(std::span<const Tensor> row_blocks, DType dtype) = 0;

  /// Stores experts of one shape, converted to `dtype`. The host memory is not used after the call.
  virtual absl::StatusOr<FfnWeights> LoadFfn(std::span<const HostFfn> experts, DType dtype) = 0;

  /// Enqueues a copy of `device.size_bytes()` bytes. `host` stays untouched until Synchronize().
  virtual void CopyFromHost(const void* host, const Tensor& device) = 0;
  virtual void CopyToHost(const Tensor& device, void* host) = 0;

  /// Waits for everything enqueued. INTERNAL if the device failed; it is of no use after that.
  virtual absl::Status Synchronize() = 0;
};

}  // namespace shoal
