// Device: the memory of one rank and the way data gets into and out of it.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
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

/// Work that a device recorded, to be enqueued as often as wanted: the same ops on the same memory.
class Graph {
 public:
  virtual ~Graph() = default;
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

  /// A weight of zeros, whose elements are still to be made on the device (Ops::FillNormal): they
  /// lie one after the other, in an order of the backend's own. INVALID_ARGUMENT: the backend has
  /// no such weights.
  virtual absl::StatusOr<Weight> AllocateWeight(int64_t out_features, int64_t in_features,
                                                DType dtype) = 0;

  /// The same of experts, which lie one after the other.
  virtual absl::StatusOr<FfnWeights> AllocateFfn(int64_t num_experts, int64_t hidden_size,
                                                 int64_t width, DType dtype) = 0;

  /// Stores the host matrices [rows_i, in_features] one under the other as one weight, converted to
  /// `dtype`. The host memory is not used after the call.
  virtual absl::StatusOr<Weight> LoadWeight(std::span<const Tensor> row_blocks, DType dtype) = 0;

  /// Stores experts of one shape, converted to `dtype`. The host memory is not used after the call.
  virtual absl::StatusOr<FfnWeights> LoadFfn(std::span<const HostFfn> experts, DType dtype) = 0;

  /// Enqueues a copy of `device.size_bytes()` bytes. `host` may be changed once the call returns.
  virtual void CopyFromHost(const void* host, const Tensor& device) = 0;

  /// Enqueues a copy of `device.size_bytes()` bytes. `host` has them after a Wait() for it.
  virtual void CopyToHost(const Tensor& device, void* host) = 0;

  /// Calls `enqueue`, which calls ops only, and records them instead of running them. They must
  /// have run before: a first run may load kernels and take working memory. Null: this device gains
  /// nothing by that; call `enqueue` for each run. INTERNAL if it cannot be recorded.
  virtual absl::StatusOr<std::unique_ptr<Graph>> Record(const std::function<void()>& enqueue) = 0;

  /// Enqueues what `graph` recorded. It outlives the run.
  virtual void Replay(const Graph& graph) = 0;

  /// The number of the last thing enqueued so far, for Wait(); 0: nothing is pending.
  virtual int64_t Mark() = 0;

  /// Waits for all that was enqueued before `mark` was taken. INTERNAL if the device failed or
  /// takes longer than a step can; it is of no use after that.
  virtual absl::Status Wait(int64_t mark) = 0;

  /// Waits for everything enqueued.
  absl::Status Synchronize() { return Wait(Mark()); }
};

}  // namespace shoal
