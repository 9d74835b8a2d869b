// The runtime's functions about copies, streams and events.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "tests/cuda_emulation/memory.h"
#include "tests/cuda_emulation/report.h"
#include "tests/cuda_emulation/runtime.h"

namespace cuda_emulation {
namespace {

using StreamPointer = std::shared_ptr<CUstream_st>;

/// True if the direction fits what is known of the memory.
bool FitsDirection(cudaMemcpyKind kind, const void* target, const void* source) {
  const auto on_device = [](const void* pointer) {
    const auto found = Memory::Get().Find(pointer, 0);
    return found && found->kind == MemoryKind::kDevice;
  };
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !on_device(target) && !on_device(source);
    case cudaMemcpyHostToDevice:
      return on_device(target) && !on_device(source);
    case cudaMemcpyDeviceToHost:
      return !on_device(target) && on_device(source);
    case cudaMemcpyDeviceToDevice:
      return on_device(target) && on_device(source);
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

bool IsPageable(const void* pointer) { return !Memory::Get().Find(pointer, 0).has_value(); }

/// Copies the source, which CUDA reads before the call returns.
void Stage(CopyWork& copy) {
  auto bytes = std::make_shared<std::vector<std::byte>>(copy.width * copy.height);
  for (size_t row = 0; row < copy.height; ++row) {
    std::memcpy(bytes->data() + row * copy.width, copy.source + row * copy.source_pitch,
                copy.width);
  }
  copy.source = bytes->data();
  copy.source_pitch = copy.width;
  copy.staged = std::move(bytes);
}

/// A copy that returns when it is enqueued, as far as the memory allows; `wait`: when it is done.
cudaError_t EnqueueCopy(CopyWork copy, cudaMemcpyKind kind, cudaStream_t handle, bool wait) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  const StreamPointer stream = runtime.FindStreamLocked(handle);
  if (stream == nullptr) return Result(cudaErrorInvalidResourceHandle);
  if (copy.width == 0 || copy.height == 0) return cudaSuccess;
  if (copy.width > copy.target_pitch || copy.width > copy.source_pitch) {
    return Result(cudaErrorInvalidPitchValue);
  }
  if (!FitsDirection(kind, copy.target, copy.source)) return Result(cudaErrorInvalidValue);
  if (stream->capture == nullptr) {
    wait = wait || IsPageable(copy.target);
    if (IsPageable(copy.source)) {
      CheckWork(copy, stream->device);
      Stage(copy);
    }
  }
  const cudaError_t error = runtime.EnqueueLocked(lock, stream, {std::move(copy)});
  if (error != cudaSuccess || !wait) return error;
  return runtime.WaitLocked(lock, *stream, stream->num_enqueued, "cudaMemcpy");
}

cudaError_t EnqueueFill(FillWork fill, cudaStream_t handle) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  const StreamPointer stream = runtime.FindStreamLocked(handle);
  if (stream == nullptr) return Result(cudaErrorInvalidResourceHandle);
  if (fill.size == 0) return cudaSuccess;
  if (!Memory::Get().Find(fill.target, 0)) return Result(cudaErrorInvalidValue);
  return runtime.EnqueueLocked(lock, stream, {fill});
}

/// For calls that wait for a stream, or look whether it is done.
cudaError_t FindForWaitLocked(Runtime& runtime, cudaStream_t handle, StreamPointer* stream) {
  *stream = runtime.FindStreamLocked(handle);
  if (*stream == nullptr) return Result(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = runtime.RefuseCaptureLocked(**stream); error != cudaSuccess) {
    return error;
  }
  if (const cudaError_t error = runtime.CheckUnsafeCallLocked(); error != cudaSuccess) return error;
  return Result(runtime.FindDeviceLocked((*stream)->device)->fault);
}

cudaError_t FindForWaitLocked(Runtime& runtime, cudaEvent_t handle, CUevent_st** event) {
  const auto found = runtime.events.find(handle);
  if (found == runtime.events.end()) return Result(cudaErrorInvalidResourceHandle);
  *event = found->second.get();
  if ((*event)->capture != nullptr) {
    (*event)->capture->invalid = true;
    return Result(cudaErrorCapturedEvent);
  }
  if (const cudaError_t error = runtime.CheckUnsafeCallLocked(); error != cudaSuccess) return error;
  return Result(runtime.FindDeviceLocked((*event)->device)->fault);
}

/// An event that was recorded in a capture is waited for in a stream, which thereby is captured.
cudaError_t AwaitCapturedLocked(CUstream_st& stream, const CUevent_st& event) {
  Capture& capture = *event.capture;
  if (stream.capture != nullptr && stream.capture != event.capture) {
    capture.invalid = stream.capture->invalid = true;
    return Result(cudaErrorStreamCaptureMerge);
  }
  stream.capture = event.capture;
  if (const auto found = capture.unjoined.find(event.capture_stream);
      found != capture.unjoined.end() && found->second == event.capture_call) {
    capture.unjoined.erase(found);
  }
  ++capture.num_calls;
  if (&stream != capture.origin) capture.unjoined[&stream] = capture.num_calls;
  return cudaSuccess;
}

void RecordCapturedLocked(const CUstream_st& stream, CUevent_st& event) {
  const auto found = stream.capture->unjoined.find(&stream);
  event.mark = nullptr;
  event.capture = stream.capture;
  event.capture_stream = &stream;
  event.capture_call = found == stream.capture->unjoined.end() ? 0 : found->second;
}

}  // namespace
extern "C" {

cudaError_t cudaMemcpy(void* dst, const void* src, size_t count, enum cudaMemcpyKind kind) {
  {
    Runtime& runtime = Runtime::Get();
    const Runtime::Lock lock(runtime.mutex());
    if (const cudaError_t error = runtime.CheckUnsafeCallLocked(); error != cudaSuccess) {
      return error;
    }
  }
  return EnqueueCopy({.target = static_cast<std::byte*>(dst),
                      .target_pitch = count,
                      .source = static_cast<const std::byte*>(src),
                      .source_pitch = count,
                      .width = count},
                     kind, nullptr, kind != cudaMemcpyDeviceToDevice);
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t count, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return EnqueueCopy({.target = static_cast<std::byte*>(dst),
                      .target_pitch = count,
                      .source = static_cast<const std::byte*>(src),
                      .source_pitch = count,
                      .width = count},
                     kind, stream, false);
}

cudaError_t cudaMemcpy2DAsync(void* dst, size_t dpitch, const void* src, size_t spitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return EnqueueCopy({.target = static_cast<std::byte*>(dst),
                      .target_pitch = dpitch,
                      .source = static_cast<const std::byte*>(src),
                      .source_pitch = spitch,
                      .width = width,
                      .height = height},
                     kind, stream, false);
}

cudaError_t cudaMemset(void* devPtr, int value, size_t count) {
  return cudaMemsetAsync(devPtr, value, count, nullptr);
}

cudaError_t cudaMemsetAsync(void* devPtr, int value, size_t count, cudaStream_t stream) {
  return EnqueueFill({.target = static_cast<std::byte*>(devPtr),
                      .value = static_cast<std::byte>(value),
                      .size = count},
                     stream);
}

cudaError_t cudaDeviceSynchronize() {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  if (const cudaError_t error = runtime.CheckUnsafeCallLocked(); error != cudaSuccess) return error;
  const cudaError_t error = runtime.WaitForDeviceLocked(lock, *device, "cudaDeviceSynchronize");
  Memory::Get().CheckMargins();
  return error;
}

cudaError_t cudaStreamCreate(cudaStream_t* pStream) {
  return cudaStreamCreateWithFlags(pStream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* pStream, unsigned int flags) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  if (flags > cudaStreamNonBlocking) return Result(cudaErrorInvalidValue);
  const auto stream = std::make_shared<CUstream_st>();
  stream->device = current_device;
  stream->blocking = flags == cudaStreamDefault;
  device->streams.insert(stream);
  *pStream = stream.get();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  const StreamPointer found = stream == nullptr ? nullptr : runtime.FindStreamLocked(stream);
  if (found == nullptr) return Result(cudaErrorInvalidResourceHandle);
  if (found->capture != nullptr) {
    found->capture->invalid = true;
    found->capture = nullptr;
  }
  runtime.RunAllLocked(lock, *found);
  runtime.FindDeviceLocked(found->device)->streams.erase(found);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  StreamPointer found;
  if (const cudaError_t error = FindForWaitLocked(runtime, stream, &found); error != cudaSuccess) {
    return error;
  }
  const cudaError_t error =
      runtime.WaitLocked(lock, *found, found->num_enqueued, "cudaStreamSynchronize");
  Memory::Get().CheckMargins();
  return error;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  StreamPointer found;
  if (const cudaError_t error = FindForWaitLocked(runtime, stream, &found); error != cudaSuccess) {
    return error;
  }
  const bool done = runtime.PollLocked(lock, *found, found->num_enqueued);
  const cudaError_t fault = runtime.FindDeviceLocked(found->device)->fault;
  return Result(fault == cudaSuccess && !done ? cudaErrorNotReady : fault);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  const StreamPointer found = runtime.FindStreamLocked(stream);
  const auto found_event = runtime.events.find(event);
  if (found == nullptr || found_event == runtime.events.end()) {
    return Result(cudaErrorInvalidResourceHandle);
  }
  const CUevent_st& awaited = *found_event->second;
  if (awaited.capture != nullptr) return AwaitCapturedLocked(*found, awaited);
  if (awaited.mark == nullptr) return cudaSuccess;
  if (found->capture != nullptr) {
    found->capture->invalid = true;
    return Result(cudaErrorStreamCaptureIsolation);
  }
  return runtime.EnqueueLocked(lock, found, {AwaitWork{awaited.mark}});
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  if (flags > (cudaEventBlockingSync | cudaEventDisableTiming)) {
    return Result(cudaErrorInvalidValue);
  }
  auto made = std::make_unique<CUevent_st>();
  made->device = current_device;
  made->timed = (flags & cudaEventDisableTiming) == 0;
  *event = made.get();
  runtime.events[*event] = std::move(made);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  const StreamPointer found = runtime.FindStreamLocked(stream);
  const auto found_event = runtime.events.find(event);
  if (found == nullptr || found_event == runtime.events.end() ||
      found->device != found_event->second->device) {
    return Result(cudaErrorInvalidResourceHandle);
  }
  CUevent_st& recorded = *found_event->second;
  if (found->capture != nullptr) {
    if (found->capture->invalid) return Result(cudaErrorStreamCaptureInvalidated);
    RecordCapturedLocked(*found, recorded);
    return cudaSuccess;
  }
  const cudaError_t fault = runtime.FindDeviceLocked(found->device)->fault;
  if (fault != cudaSuccess) return Result(fault);
  recorded.capture = nullptr;
  recorded.mark = std::make_shared<Mark>();
  recorded.mark->stream = found;
  return runtime.EnqueueLocked(lock, found, {RecordWork{recorded.mark}});
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  CUevent_st* found = nullptr;
  if (const cudaError_t error = FindForWaitLocked(runtime, event, &found); error != cudaSuccess) {
    return error;
  }
  const auto mark = found->mark;
  if (mark == nullptr) return cudaSuccess;
  const bool done = runtime.PollLocked(lock, *mark->stream, mark->position);
  const cudaError_t fault = runtime.FindDeviceLocked(mark->stream->device)->fault;
  return Result(fault == cudaSuccess && !done ? cudaErrorNotReady : fault);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  CUevent_st* found = nullptr;
  if (const cudaError_t error = FindForWaitLocked(runtime, event, &found); error != cudaSuccess) {
    return error;
  }
  const auto mark = found->mark;
  if (mark == nullptr) return cudaSuccess;
  return runtime.WaitLocked(lock, *mark->stream, mark->position, "cudaEventSynchronize");
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  return Result(runtime.events.erase(event) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const auto passed = [&runtime](cudaEvent_t event, std::shared_ptr<Mark>* mark) -> cudaError_t {
    const auto found = runtime.events.find(event);
    if (found == runtime.events.end() || !found->second->timed || found->second->mark == nullptr) {
      return cudaErrorInvalidResourceHandle;
    }
    *mark = found->second->mark;
    return (*mark)->stream->num_done >= (*mark)->position ? cudaSuccess : cudaErrorNotReady;
  };
  std::shared_ptr<Mark> from, to;
  if (const cudaError_t error = passed(start, &from); error != cudaSuccess) return Result(error);
  if (const cudaError_t error = passed(end, &to); error != cudaSuccess) return Result(error);
  *ms = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return cudaSuccess;
}

}  // extern "C"

}  // namespace cuda_emulation
