// A GPU to measure on: its backend by parts, so that its stream can be timed and recorded.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/bench/gpu_bench_report.h"
#include "tests/bench/gpu_bench_routing_probe.h"

namespace shoal::bench {

/// How often a thing is timed: until both are over, but at least `min_rounds` times.
struct Timing {
  int min_rounds = 5;
  int max_rounds = 25;
  double max_seconds = 0.5;
};

/// Work as the stream recorded it.
class Recording {
 public:
  /// One kernel of it, with its arguments.
  struct Kernel {
    std::string name;  // without namespaces and arguments, with the grid: "Kernel<64> [132, 1, 1]"
    cudaGraphNode_t node = nullptr;
  };

  Recording(cudaGraph_t graph, cudaGraphExec_t executable)
      : graph_(graph), executable_(executable) {}
  ~Recording();
  Recording(const Recording&) = delete;

  cudaGraphExec_t executable() const { return executable_; }
  /// In the order in which they were enqueued.
  std::vector<Kernel> Kernels() const;

 private:
  const cudaGraph_t graph_;
  const cudaGraphExec_t executable_;
};

/// Ends the process with a sentence if CUDA fails: there is nothing to measure then. Thread: one.
class Gpu {
 public:
  /// UNAVAILABLE says why there is none.
  static absl::StatusOr<std::unique_ptr<Gpu>> Create(int ordinal, const Timing& timing);
  ~Gpu();

  Backend& backend() { return backend_; }
  Device& device() { return *backend_.device; }
  Ops& ops() { return *backend_.ops; }
  RoutingProbe& routing_probe() { return *routing_probe_; }
  cudaStream_t stream() const { return stream_->get(); }
  Machine machine() const;

  Tensor Allocate(DType dtype, std::initializer_list<int64_t> shape);
  /// Of normally distributed elements.
  Tensor Random(DType dtype, std::initializer_list<int64_t> shape, float stddev = 1);
  Tensor Upload(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape);
  std::vector<int32_t> Download(const Tensor& ints);
  void Synchronize();

  /// Runs `enqueue` once, so that the ops take their working memory, then records it.
  std::unique_ptr<Recording> Record(const std::function<void()>& enqueue);
  /// Some of a recording's kernels, one after the other. Working memory has what the recording left
  /// there: who picks must know that the kernels can do with it.
  std::unique_ptr<Recording> Pick(const std::vector<Recording::Kernel>& kernels);

  /// Median of the device's seconds for one replay; replayed twice before.
  double MedianSeconds(const Recording& recording);
  /// The same of what `enqueue` enqueues, launches included.
  double MedianSeconds(const std::function<void()>& enqueue);
  /// Record() and MedianSeconds().
  double MedianRecordedSeconds(const std::function<void()>& enqueue) {
    return MedianSeconds(*Record(enqueue));
  }
  /// The time of a recording, by the names of its kernels: from the end of the kernel before, with
  /// an event in between.
  std::vector<KernelShare> TimeByKernel(const Recording& recording);

 private:
  Gpu(int ordinal, const Timing& timing) : ordinal_(ordinal), timing_(timing) {}
  double SecondsOf(const std::function<void()>& enqueue);

  const int ordinal_;
  const Timing timing_;
  std::shared_ptr<cuda::CudaStream> stream_;
  Backend backend_;
  RoutingProbe* routing_probe_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  uint64_t num_random_ = 0;
};

/// Ends the process if a call of the CUDA runtime failed.
void Check(cudaError_t error, const char* call);

}  // namespace shoal::bench
