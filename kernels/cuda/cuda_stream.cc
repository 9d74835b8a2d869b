#include "kernels/cuda/cuda_stream.h"

#include <thread>
#include <utility>

namespace shoal::cuda {
namespace {

using Clock = std::chrono::steady_clock;

/// Lets other threads have the core: briefly at first, since most steps are short.
void Pause(Clock::duration waited) {
  constexpr auto kShort = std::chrono::microseconds(100);
  constexpr auto kNap = std::chrono::microseconds(20);
  if (waited < kShort) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(kNap);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaStream>> CudaStream::Create(
    int ordinal, std::chrono::milliseconds step_timeout) {
  std::unique_ptr<CudaStream> stream(new CudaStream(ordinal, step_timeout));
  stream->Check(cudaStreamCreateWithFlags(&stream->stream_, cudaStreamNonBlocking),
                "cudaStreamCreateWithFlags");
  RETURN_IF_ERROR(stream->status());
  return stream;
}

CudaStream::~CudaStream() {
  for (const PendingMark& pending : pending_) cudaEventDestroy(pending.event);
  for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaStream::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

bool CudaStream::Check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return true;
  Fail(absl::InternalError(fmt::format("CUDA device {} failed: {} ({}) in {}", ordinal_,
                                       cudaGetErrorName(error), cudaGetErrorString(error), call)));
  cudaGetLastError();  // also the runtime's memory of it
  return false;
}

int64_t CudaStream::Mark() {
  SHOAL_CHECK(!is_recording_, "a mark inside a recording");
  if (!status_.ok()) return last_mark_;
  Poll();
  cudaEvent_t event = nullptr;
  if (!free_events_.empty()) {
    event = free_events_.back();
    free_events_.pop_back();
  } else if (!Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                    "cudaEventCreateWithFlags")) {
    return last_mark_;
  }
  pending_.push_back({++last_mark_, event});
  Check(cudaEventRecord(event, stream_), "cudaEventRecord");
  return last_mark_;
}

/// Finds out how far the device is.
void CudaStream::Poll() {
  while (!pending_.empty()) {
    const cudaError_t error = cudaEventQuery(pending_.front().event);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();  // this is no failure: the next call shall not find it
      return;
    }
    if (!Check(error, "cudaEventQuery")) return;
    done_mark_ = pending_.front().mark;
    free_events_.push_back(pending_.front().event);
    pending_.pop_front();
  }
}

/// Calls `is_done` until it is so. If that takes longer than a step can, the stream fails.
void CudaStream::PollUntil(const std::function<bool()>& is_done) {
  const Clock::time_point start = Clock::now();
  while (!is_done()) {
    const Clock::duration waited = Clock::now() - start;
    if (waited > step_timeout_) {
      is_hung_ = true;
      return Fail(absl::InternalError(
          fmt::format("CUDA device {} failed: it did not finish a step within {} s", ordinal_,
                      std::chrono::duration<double>(step_timeout_).count())));
    }
    Pause(waited);
  }
}

absl::Status CudaStream::Wait(int64_t mark) {
  SHOAL_CHECK(!is_recording_ && mark <= last_mark_, "a wait for mark {} of {}{}", mark, last_mark_,
              is_recording_ ? ", inside a recording" : "");
  if (!status_.ok()) return status_;
  PollUntil([this, mark] {
    if (done_mark_ < mark) Poll();
    return done_mark_ >= mark || !status_.ok();
  });
  return status_;
}

bool CudaStream::Drain() {
  if (is_hung_) return false;
  // A device that failed does nothing any more, either.
  PollUntil([this] { return cudaStreamQuery(stream_) != cudaErrorNotReady; });
  cudaGetLastError();  // no failure that somebody should find
  return !is_hung_;
}

absl::StatusOr<cudaGraphExec_t> CudaStream::Record(const std::function<void()>& enqueue) {
  SHOAL_CHECK(!is_recording_, "a recording inside a recording");
  RETURN_IF_ERROR(status());
  // Other threads may allocate and copy meanwhile: they are other ranks.
  Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
  RETURN_IF_ERROR(status());
  is_recording_ = has_recorded_ = true;
  enqueue();
  is_recording_ = false;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
  if (graph != nullptr) {
    Check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    Check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  if (!status_.ok()) {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    return status_;
  }
  return executable;
}

void CudaStream::Replay(cudaGraphExec_t graph) {
  SHOAL_CHECK(!is_recording_, "a replay inside a recording");
  if (status_.ok()) Check(cudaGraphLaunch(graph, stream_), "cudaGraphLaunch");
}

}  // namespace shoal::cuda
