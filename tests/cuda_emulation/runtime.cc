#include "tests/cuda_emulation/runtime.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "tests/cuda_emulation/block.h"
#include "tests/cuda_emulation/emulator.h"
#include "tests/cuda_emulation/memory.h"
#include "tests/cuda_emulation/report.h"

namespace cuda_emulation {

constinit thread_local int current_device = 0;

namespace {

std::atomic<uint64_t> global_seed = 1;
std::atomic<uint64_t> num_seeds = 0;  // calls of Seed()

std::atomic<bool> check_accesses = true;

thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

/// How soon streams work, by the seed.
enum class Pace { kAtOnce, kLate, kMixed };

Pace PaceOfSeed() { return static_cast<Pace>(global_seed % 3); }

}  // namespace

cudaError_t Result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

Runtime& Runtime::Get() {
  static auto* const kRuntime = new Runtime();
  return *kRuntime;
}

Runtime::Runtime() { SetDevices(1, kDefaultMemoryBytes); }

void Runtime::SetDevices(int count, size_t memory_bytes) {
  const Lock lock(mutex_);
  for (const Device& device : devices_) {
    if (device.streams.size() > 1) {
      Violation("SetDevices() while a device has %zu streams", device.streams.size() - 1);
    }
  }
  for (int i = 0; i < num_devices_; ++i) {
    const size_t used = Memory::Get().UsedBytes(i);
    if (used > 0) Violation("SetDevices() while %zu bytes of device %d are in use", used, i);
  }
  num_devices_ = count;
  memory_bytes_ = memory_bytes;
  devices_.clear();
  devices_.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    Device& device = devices_[static_cast<size_t>(i)];
    device.legacy_stream = std::make_shared<CUstream_st>();
    device.legacy_stream->device = i;
    device.streams.insert(device.legacy_stream);
  }
}

Device* Runtime::FindDeviceLocked(int number) {
  return number >= 0 && number < num_devices_ ? &devices_[static_cast<size_t>(number)] : nullptr;
}

cudaError_t Runtime::CurrentDeviceLocked(Device** device) {
  if (num_devices_ == 0) return Result(cudaErrorNoDevice);
  *device = FindDeviceLocked(current_device);
  if (*device == nullptr) return Result(cudaErrorInvalidDevice);
  return Result((*device)->fault);
}

std::shared_ptr<CUstream_st> Runtime::FindStreamLocked(cudaStream_t handle) {
  if (handle == nullptr) {
    const Device* device = FindDeviceLocked(current_device);
    return device == nullptr ? nullptr : device->legacy_stream;
  }
  for (const Device& device : devices_) {
    for (const auto& stream : device.streams) {
      if (stream.get() == handle) return stream;
    }
  }
  return nullptr;
}

cudaError_t Runtime::CheckUnsafeCallLocked() {
  cudaError_t error = cudaSuccess;
  for (const auto& capture : captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool forbidden = own ? capture->mode != cudaStreamCaptureModeRelaxed &&
                                     capture_mode != cudaStreamCaptureModeRelaxed
                               : capture->mode == cudaStreamCaptureModeGlobal &&
                                     capture_mode == cudaStreamCaptureModeGlobal;
    if (!forbidden) continue;
    capture->invalid = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return Result(error);
}

cudaError_t Runtime::RefuseCaptureLocked(CUstream_st& stream) {
  if (stream.capture == nullptr) return cudaSuccess;
  const bool was_invalid = std::exchange(stream.capture->invalid, true);
  return Result(was_invalid ? cudaErrorStreamCaptureInvalidated
                            : cudaErrorStreamCaptureUnsupported);
}

Random Runtime::MakeRandom() {
  thread_local uint64_t seeds_seen = 0;
  thread_local uint64_t num_calls = 0;
  if (std::exchange(seeds_seen, num_seeds.load()) != num_seeds.load()) num_calls = 0;
  return Random(MixBits(global_seed) ^ MixBits(~num_calls++));
}

void Runtime::PushLocked(CUstream_st& stream, Work work) {
  ++stream.num_enqueued;
  if (const auto* record = std::get_if<RecordWork>(&work)) {
    record->mark->position = stream.num_enqueued;
  }
  stream.queue.push_back(std::move(work));
}

/// The legacy default stream waits for all that was enqueued in blocking streams, and they for it.
void Runtime::AwaitLegacyLocked(const std::shared_ptr<CUstream_st>& stream) {
  const Device& device = devices_[static_cast<size_t>(stream->device)];
  const auto await = [&](const std::shared_ptr<CUstream_st>& other) {
    if (other == stream || !other->blocking || other->num_done == other->num_enqueued) return;
    PushLocked(*stream, AwaitWork{std::make_shared<Mark>(Mark{other, other->num_enqueued})});
  };
  if (stream == device.legacy_stream) {
    std::for_each(device.streams.begin(), device.streams.end(), await);
  } else if (stream->blocking) {
    await(device.legacy_stream);
  }
}

cudaError_t Runtime::EnqueueLocked(Lock& lock, const std::shared_ptr<CUstream_st>& stream,
                                   std::vector<Work> work) {
  for (const Work& piece : work) CheckWork(piece, stream->device);
  if (stream->capture != nullptr) {
    Capture& capture = *stream->capture;
    if (capture.invalid) return Result(cudaErrorStreamCaptureInvalidated);
    std::move(work.begin(), work.end(), std::back_inserter(capture.nodes));
    ++capture.num_calls;
    if (stream.get() != capture.origin) capture.unjoined[stream.get()] = capture.num_calls;
    return cudaSuccess;
  }
  const Device& device = devices_[static_cast<size_t>(stream->device)];
  if (stream == device.legacy_stream) {
    for (const auto& other : device.streams) {
      if (other->capture == nullptr || !other->blocking) continue;
      other->capture->invalid = true;
      return Result(cudaErrorStreamCaptureImplicit);
    }
  }
  AwaitLegacyLocked(stream);
  for (Work& piece : work) PushLocked(*stream, std::move(piece));
  const Pace pace = PaceOfSeed();
  const uint64_t pending = stream->num_enqueued - stream->num_done;
  uint64_t some = pace == Pace::kAtOnce ? pending : 0;
  if (pace == Pace::kMixed) some = MakeRandom().Next() % (pending + 1);
  if (some > 0) RunLocked(lock, *stream, stream->num_done + some);
  return cudaSuccess;
}

bool Runtime::RunLocked(Lock& lock, CUstream_st& stream, uint64_t position) {
  if (stream.num_done >= position) return true;
  const int number = stream.device;
  Device& device = devices_[static_cast<size_t>(number)];
  if (device.num_running++ == 0) Memory::Get().SetAccessible(number, true);
  bool done = true;
  while (done && stream.num_done < position) {
    if (stream.running) {  // by another thread
      progress_.wait(lock);
      continue;
    }
    done = RunFrontLocked(lock, stream);
  }
  // Every time would take too long.
  constexpr uint32_t kTimes = 8;
  if (--device.num_running == 0 && PaceOfSeed() == Pace::kLate && MakeRandom().Below(kTimes) == 0) {
    Memory::Get().SetAccessible(number, false);
  }
  return done;
}

/// Carries out the next piece of work, which nobody else does.
bool Runtime::RunFrontLocked(Lock& lock, CUstream_st& stream) {
  Device& device = devices_[static_cast<size_t>(stream.device)];
  if (device.hung || device.fault != cudaSuccess) return false;
  const Work work = stream.queue.front();
  if (device.fail_kernel != cudaSuccess && std::holds_alternative<KernelWork>(work)) {
    device.fault = std::exchange(device.fail_kernel, cudaSuccess);
    return false;
  }
  stream.running = true;
  bool done = true;
  if (const auto* await = std::get_if<AwaitWork>(&work)) {
    done = RunLocked(lock, *await->mark->stream, await->mark->position);
  } else {
    lock.unlock();
    CheckWork(work, stream.device);
    Execute(work, MakeRandom().Next());
    lock.lock();
  }
  stream.running = false;
  if (done) {
    stream.queue.pop_front();
    ++stream.num_done;
  }
  progress_.notify_all();
  return done;
}

cudaError_t Runtime::WaitLocked(Lock& lock, CUstream_st& stream, uint64_t position,
                                const char* call) {
  if (RunLocked(lock, stream, position)) return cudaSuccess;
  for (const Device& device : devices_) {
    if (device.hung) Violation("%s waits for a device that hangs: it would never return", call);
  }
  return Result(devices_[static_cast<size_t>(stream.device)].fault);
}

cudaError_t Runtime::WaitForDeviceLocked(Lock& lock, Device& device, const char* call) {
  const std::vector<std::shared_ptr<CUstream_st>> streams(device.streams.begin(),
                                                          device.streams.end());
  for (const auto& stream : streams) {
    const cudaError_t error = WaitLocked(lock, *stream, stream->num_enqueued, call);
    if (error != cudaSuccess) return error;
  }
  return Result(device.fault);
}

bool Runtime::PollLocked(Lock& lock, CUstream_st& stream, uint64_t position) {
  if (stream.num_done >= position) return true;
  switch (MakeRandom().Below(3)) {
    case 0:
      RunLocked(lock, stream, stream.num_done + 1);
      return stream.num_done >= position;
    case 1:
      RunLocked(lock, stream, position);
      return false;
    default:
      return RunLocked(lock, stream, position);
  }
}

void Runtime::CheckUnusedLocked(const void* begin, size_t size, const char* call) const {
  for (const Device& device : devices_) {
    if (device.fault != cudaSuccess) continue;
    for (const auto& stream : device.streams) {
      for (const Work& work : stream->queue) {
        if (!UsesMemory(work, static_cast<const std::byte*>(begin), size)) continue;
        const auto* kernel = std::get_if<KernelWork>(&work);
        Violation("%s of memory that enqueued work still uses: %s", call,
                  kernel == nullptr ? "a copy or memset"
                                    : FunctionName(kernel->call->function()).c_str());
      }
    }
  }
}

void Seed(uint64_t seed) {
  global_seed = seed;
  ++num_seeds;
}

uint64_t Seed() { return global_seed; }

void CheckAccesses(bool check) { check_accesses = check; }

bool AreAccessesChecked() { return check_accesses; }

void SetDevices(int count, size_t memory_bytes) { Runtime::Get().SetDevices(count, memory_bytes); }

namespace {

template <typename Change>
void ChangeDevice(int number, const Change& change) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  Device* const device = runtime.FindDeviceLocked(number);
  if (device == nullptr) Violation("there is no device %d", number);
  change(*device);
}

}  // namespace

void RefuseNextLaunch(int device, cudaError_t error) {
  ChangeDevice(device, [error](Device& changed) { changed.refuse_launch = error; });
}

void FailNextKernel(int device, cudaError_t error) {
  ChangeDevice(device, [error](Device& changed) { changed.fail_kernel = error; });
}

void Hang(int device) {
  ChangeDevice(device, [](Device& changed) { changed.hung = true; });
}

void Recover(int device) {
  ChangeDevice(device, [](Device& changed) {
    changed.hung = false;
    changed.fault = changed.refuse_launch = changed.fail_kernel = cudaSuccess;
  });
}

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  if (mode == nullptr) return Result(cudaErrorInvalidValue);
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

}  // extern "C"

}  // namespace cuda_emulation
