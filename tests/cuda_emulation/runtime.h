// The state behind the runtime's functions: devices, streams, captures, errors.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "tests/cuda_emulation/random.h"
#include "tests/cuda_emulation/work.h"

namespace cuda_emulation {

/// What is recorded between cudaStreamBeginCapture() and cudaStreamEndCapture(). Nodes are kept in
/// the order of their calls, which is an order in which they may run.
struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  const CUstream_st* origin = nullptr;
  bool invalid = false;
  std::vector<Work> nodes;
  std::map<const CUstream_st*, uint64_t> unjoined;  // calls of streams that nobody waited for yet
  uint64_t num_calls = 0;
};

}  // namespace cuda_emulation

struct CUstream_st {
  int device = 0;
  bool blocking = true;  // waits for the legacy default stream, and that for it
  std::deque<cuda_emulation::Work> queue;
  uint64_t num_enqueued = 0;
  uint64_t num_done = 0;
  bool running = false;  // a thread carries out the front of the queue
  std::shared_ptr<cuda_emulation::Capture> capture;
};

struct CUevent_st {
  int device = 0;
  bool timed = true;
  std::shared_ptr<cuda_emulation::Mark> mark;  // null: never recorded
  // Recorded in a capture: by which call of which stream.
  std::shared_ptr<cuda_emulation::Capture> capture;
  const CUstream_st* capture_stream = nullptr;
  uint64_t capture_call = 0;
};

struct CUgraphNode_st {
  cudaGraph_t graph = nullptr;
  size_t index = 0;
};

struct CUgraph_st {
  std::deque<cuda_emulation::Work> nodes;  // stay where they are, for their parameters do
  std::deque<CUgraphNode_st> handles;      // of the first nodes, for who asked for them
};

struct CUgraphExec_st {
  int device = 0;
  std::vector<cuda_emulation::Work> nodes;
};

namespace cuda_emulation {

struct Device {
  std::shared_ptr<CUstream_st> legacy_stream;
  std::set<std::shared_ptr<CUstream_st>> streams;  // with the legacy one
  cudaError_t fault = cudaSuccess;                 // what everything fails with
  bool hung = false;
  int num_running = 0;  // calls that carry out work
  cudaError_t refuse_launch = cudaSuccess;
  cudaError_t fail_kernel = cudaSuccess;
};

/// One for the process. Functions named ...Locked are called with mutex() held, and those that
/// carry out work release it meanwhile.
class Runtime {
 public:
  using Lock = std::unique_lock<std::mutex>;

  static Runtime& Get();

  std::mutex& mutex() { return mutex_; }

  /// The device of a number; null: there is none.
  Device* FindDeviceLocked(int number);
  /// The calling thread's device, or what is wrong with it.
  cudaError_t CurrentDeviceLocked(Device** device);
  int num_devices() const { return num_devices_; }
  size_t memory_bytes() const { return memory_bytes_; }
  void SetDevices(int count, size_t memory_bytes);

  /// The stream behind a handle; null: it is none.
  std::shared_ptr<CUstream_st> FindStreamLocked(cudaStream_t handle);

  /// cudaSuccess unless some capture forbids a call that might wait for the device: of this
  /// thread, or a global one of another. Such a call makes the captures invalid.
  cudaError_t CheckUnsafeCallLocked();
  /// cudaSuccess unless the stream is capturing, which the call makes invalid.
  cudaError_t RefuseCaptureLocked(CUstream_st& stream);

  /// Adds work to a stream, or a node to what it captures; carries it out at once, or a part of
  /// what is in the stream, or nothing, by the seed.
  cudaError_t EnqueueLocked(Lock& lock, const std::shared_ptr<CUstream_st>& stream,
                            std::vector<Work> work);

  /// Carries out a stream's work up to a position. False: the device does not get so far, because
  /// it hangs or has failed.
  bool RunLocked(Lock& lock, CUstream_st& stream, uint64_t position);
  bool RunAllLocked(Lock& lock, CUstream_st& stream) {
    return RunLocked(lock, stream, stream.num_enqueued);
  }
  /// The same for a call that waits for it: violation if it hangs, otherwise the device's fault.
  cudaError_t WaitLocked(Lock& lock, CUstream_st& stream, uint64_t position, const char* call);
  /// All streams of a device.
  cudaError_t WaitForDeviceLocked(Lock& lock, Device& device, const char* call);
  /// As time passes between two calls of the host: some of the work up to the position is done.
  /// True: all of it was done before.
  bool PollLocked(Lock& lock, CUstream_st& stream, uint64_t position);

  /// Violation if enqueued work uses the memory, which is about to be freed.
  void CheckUnusedLocked(const void* begin, size_t size, const char* call) const;

  /// From the seed; differs from call to call of a thread.
  static Random MakeRandom();

  // Objects that handles refer to.
  std::map<cudaEvent_t, std::unique_ptr<CUevent_st>> events;
  std::map<cudaGraph_t, std::unique_ptr<CUgraph_st>> graphs;
  std::map<cudaGraphExec_t, std::unique_ptr<CUgraphExec_st>> executables;
  std::set<std::shared_ptr<Capture>> captures;
  std::map<const void*, int> shared_memory_limits;  // of kernels

 private:
  Runtime();
  void AwaitLegacyLocked(const std::shared_ptr<CUstream_st>& stream);
  void PushLocked(CUstream_st& stream, Work work);
  bool RunFrontLocked(Lock& lock, CUstream_st& stream);

  std::mutex mutex_;
  std::condition_variable progress_;
  int num_devices_ = 0;
  size_t memory_bytes_ = 0;
  std::vector<Device> devices_;
};

/// The calling thread's current device.
extern constinit thread_local int current_device;

/// Remembers an error for cudaGetLastError() and returns it.
cudaError_t Result(cudaError_t error);

}  // namespace cuda_emulation
