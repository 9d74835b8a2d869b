// CudaStream: the order in which a rank's device works, how the host waits for it, and what
// becomes of failures.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/status.h"

namespace shoal::cuda {

/// A stream of the current device. The first failure stays: the stream is of no use after it, and
/// every wait returns it. Thread: the one that made it.
class CudaStream {
 public:
  /// The calling thread's current device is the one with this number. INTERNAL: CUDA failed.
  static absl::StatusOr<std::unique_ptr<CudaStream>> Create(int ordinal,
                                                            std::chrono::milliseconds step_timeout);
  ~CudaStream();

  cudaStream_t get() const { return stream_; }

  /// OK, or the first failure.
  const absl::Status& status() const { return status_; }
  void Fail(absl::Status status);
  /// Whether `error` is none; otherwise the stream fails with INTERNAL, naming it and `call`.
  bool Check(cudaError_t error, const char* call);

  /// As Device::Mark() and Wait().
  int64_t Mark();
  absl::Status Wait(int64_t mark);
  /// What the next Mark() will return: it covers all that is enqueued until then.
  int64_t next_mark() const { return last_mark_ + 1; }
  /// The last mark that is known to be done.
  int64_t done_mark() const { return done_mark_; }

  /// Waits until the device has nothing more to do, also after a failure. False: it hangs, so its
  /// memory cannot be given back.
  bool Drain();

  /// As Device::Record() and Replay(). The caller destroys the graph.
  absl::StatusOr<cudaGraphExec_t> Record(const std::function<void()>& enqueue);
  void Replay(cudaGraphExec_t graph);
  bool is_recording() const { return is_recording_; }
  /// Whether there may be graphs that refer to memory.
  bool has_recorded() const { return has_recorded_; }

 private:
  struct PendingMark {
    int64_t mark = 0;
    cudaEvent_t event = nullptr;
  };

  CudaStream(int ordinal, std::chrono::milliseconds step_timeout)
      : ordinal_(ordinal), step_timeout_(step_timeout) {}
  void Poll();
  void PollUntil(const std::function<bool()>& is_done);

  const int ordinal_;
  const std::chrono::milliseconds step_timeout_;
  cudaStream_t stream_ = nullptr;
  absl::Status status_;
  bool is_hung_ = false;  // it failed by taking too long
  bool is_recording_ = false;
  bool has_recorded_ = false;
  int64_t last_mark_ = 0;
  int64_t done_mark_ = 0;
  std::deque<PendingMark> pending_;  // by rising mark
  std::vector<cudaEvent_t> free_events_;
};

}  // namespace shoal::cuda
