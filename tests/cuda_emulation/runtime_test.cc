// The emulated runtime: streams, events, captures, graphs, memory, devices, trouble.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/cuda_emulation/emulator.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::Launch;

constexpr uint64_t kSeeds = 20;

#define EXPECT_OK(call) EXPECT_EQ((call), cudaSuccess)

void AddTo(int* value, int summand) { *value += summand; }

struct Pointers {
  int* first;
  const int* second;
};

void AddOther(Pointers values) { *values.first += *values.second; }

/// A stream, and memory on the device and the host, of one int each.
class RuntimeTest : public testing::Test {
 protected:
  RuntimeTest() {
    Seed(1);
    EXPECT_OK(cudaMalloc(&value_, sizeof(int)));
    EXPECT_OK(cudaMallocHost(&pinned_, sizeof(int)));
    EXPECT_OK(cudaMemset(value_, 0, sizeof(int)));
    EXPECT_OK(cudaDeviceSynchronize());
    EXPECT_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~RuntimeTest() override {
    Recover(0);
    cudaStreamDestroy(stream_);
    cudaFree(value_);
    cudaFreeHost(pinned_);
    cudaGetLastError();
  }

  void Add(int summand) { Launch(AddTo, {.blocks = 1, .threads = 1}, stream_, value_, summand); }
  int Read() {
    int value = 0;
    EXPECT_OK(cudaMemcpyAsync(&value, value_, sizeof(int), cudaMemcpyDeviceToHost, stream_));
    return value;
  }

  int* value_ = nullptr;
  int* pinned_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

using RuntimeDeathTest = RuntimeTest;

TEST_F(RuntimeTest, WorkIsDoneInOrderAtSomeTime) {
  std::set<int> seen_early;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    EXPECT_OK(cudaMemsetAsync(value_, 0, sizeof(int), stream_));
    EXPECT_OK(cudaStreamSynchronize(stream_));
    for (int i = 1; i <= 3; ++i) Add(i);
    seen_early.insert(*value_);  // what no program may do
    EXPECT_OK(cudaStreamSynchronize(stream_));
    EXPECT_EQ(Read(), 6);
  }
  EXPECT_TRUE(seen_early.contains(0));
  EXPECT_TRUE(seen_early.contains(6));
  EXPECT_GT(seen_early.size(), 2u);
}

TEST_F(RuntimeTest, PageableMemoryIsReadAtOnce) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    int value = 5;
    EXPECT_OK(cudaMemcpyAsync(value_, &value, sizeof(int), cudaMemcpyHostToDevice, stream_));
    value = 6;
    EXPECT_EQ(Read(), 5);
  }
}

TEST_F(RuntimeTest, PinnedMemoryIsReadAndWrittenLater) {
  int changed = 0;
  int unwritten = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    *pinned_ = 5;
    EXPECT_OK(cudaMemcpyAsync(value_, pinned_, sizeof(int), cudaMemcpyHostToDevice, stream_));
    *pinned_ = 6;
    EXPECT_OK(cudaStreamSynchronize(stream_));
    EXPECT_OK(cudaMemcpyAsync(pinned_, value_, sizeof(int), cudaMemcpyDeviceToHost, stream_));
    *pinned_ = 7;
    EXPECT_OK(cudaStreamSynchronize(stream_));
    changed += Read() == 6;
    unwritten += *pinned_ != 7;
  }
  EXPECT_GE(changed, 5);
  EXPECT_GE(unwritten, 5);
}

TEST_F(RuntimeTest, CopiesOfRows) {
  std::vector<int> matrix = {1, 2, 3, 4, 5, 6}, picked(4);
  int* device = nullptr;
  EXPECT_OK(cudaMalloc(&device, 6 * sizeof(int)));
  EXPECT_OK(
      cudaMemcpyAsync(device, matrix.data(), 6 * sizeof(int), cudaMemcpyHostToDevice, stream_));
  EXPECT_OK(cudaMemcpy2DAsync(picked.data(), 2 * sizeof(int), device, 3 * sizeof(int),
                              2 * sizeof(int), 2, cudaMemcpyDeviceToHost, stream_));
  EXPECT_EQ(picked, (std::vector<int>{1, 2, 4, 5}));
  EXPECT_EQ(cudaMemcpy2DAsync(picked.data(), 2 * sizeof(int), device, sizeof(int), 2 * sizeof(int),
                              2, cudaMemcpyDeviceToHost, stream_),
            cudaErrorInvalidPitchValue);
  EXPECT_EQ(cudaMemcpyAsync(device, device, 4, cudaMemcpyHostToDevice, stream_),
            cudaErrorInvalidValue);
  EXPECT_OK(cudaFree(device));
}

TEST_F(RuntimeTest, QueriesDoNotWait) {
  std::set<int> polls;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    for (int i = 0; i < 5; ++i) Add(1);
    int count = 0;
    while (true) {
      const cudaError_t error = cudaStreamQuery(stream_);
      if (error == cudaSuccess) break;
      ASSERT_EQ(error, cudaErrorNotReady);
      ++count;
    }
    polls.insert(count);
  }
  EXPECT_TRUE(polls.contains(0));
  EXPECT_GT(polls.size(), 2u);
  EXPECT_EQ(Read(), 5 * static_cast<int>(kSeeds));
}

TEST_F(RuntimeTest, EventsArePassedInOrder) {
  cudaEvent_t event = nullptr;
  EXPECT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  EXPECT_OK(cudaEventQuery(event)) << "never recorded";
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    Add(1);
    EXPECT_OK(cudaEventRecord(event, stream_));
    Add(100);
    if (seed % 2 == 0) {
      EXPECT_OK(cudaEventSynchronize(event));
    } else {
      while (cudaEventQuery(event) == cudaErrorNotReady) {
      }
    }
    EXPECT_TRUE(*value_ == 1 || *value_ == 101) << *value_;
    EXPECT_OK(cudaStreamSynchronize(stream_));
    EXPECT_OK(cudaMemsetAsync(value_, 0, sizeof(int), stream_));
    EXPECT_OK(cudaStreamSynchronize(stream_));
  }
  cudaGetLastError();
  EXPECT_OK(cudaEventDestroy(event));
  EXPECT_EQ(cudaEventDestroy(event), cudaErrorInvalidResourceHandle);
}

TEST_F(RuntimeTest, EventsTellTheTime) {
  cudaEvent_t start = nullptr, end = nullptr;
  EXPECT_OK(cudaEventCreate(&start));
  EXPECT_OK(cudaEventCreate(&end));
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorInvalidResourceHandle);
  EXPECT_OK(cudaEventRecord(start, stream_));
  Add(1);
  EXPECT_OK(cudaEventRecord(end, stream_));
  EXPECT_OK(cudaEventSynchronize(end));
  EXPECT_OK(cudaEventElapsedTime(&milliseconds, start, end));
  EXPECT_GE(milliseconds, 0);
  EXPECT_OK(cudaEventDestroy(start));
  EXPECT_OK(cudaEventDestroy(end));
}

/// The value that another stream computes, with and without waiting for it.
int AcrossStreams(bool wait, int* value, cudaStream_t stream) {
  cudaStream_t other = nullptr;
  cudaEvent_t event = nullptr;
  EXPECT_OK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  EXPECT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  EXPECT_OK(cudaMemsetAsync(value, 0, sizeof(int), stream));
  Launch(AddTo, {.blocks = 1, .threads = 1}, stream, value, 3);
  EXPECT_OK(cudaEventRecord(event, stream));
  if (wait) EXPECT_OK(cudaStreamWaitEvent(other, event));
  int result = 0;
  EXPECT_OK(cudaMemcpyAsync(&result, value, sizeof(int), cudaMemcpyDeviceToHost, other));
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_OK(cudaStreamDestroy(other));
  EXPECT_OK(cudaEventDestroy(event));
  return result;
}

TEST_F(RuntimeTest, StreamsWaitForEachOtherOnlyByEvents) {
  int wrong = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    EXPECT_EQ(AcrossStreams(true, value_, stream_), 3);
    EXPECT_OK(cudaMemset(value_, 0, sizeof(int)));
    EXPECT_OK(cudaDeviceSynchronize());
    wrong += AcrossStreams(false, value_, stream_) != 3;
  }
  EXPECT_GE(wrong, 5);
}

TEST_F(RuntimeTest, LegacyStreamWaitsForBlockingStreams) {
  cudaStream_t blocking = nullptr;
  EXPECT_OK(cudaStreamCreate(&blocking));
  int missed = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    for (cudaStream_t stream : {blocking, stream_}) {
      EXPECT_OK(cudaMemset(value_, 0, sizeof(int)));
      EXPECT_OK(cudaDeviceSynchronize());
      Launch(AddTo, {.blocks = 1, .threads = 1}, stream, value_, 3);
      int value = 0;
      EXPECT_OK(cudaMemcpy(&value, value_, sizeof(int), cudaMemcpyDeviceToHost));
      if (stream == blocking) {
        EXPECT_EQ(value, 3);
      } else {
        missed += value != 3;
      }
      EXPECT_OK(cudaStreamSynchronize(stream));
    }
  }
  EXPECT_GE(missed, 5);
  EXPECT_OK(cudaStreamDestroy(blocking));
}

// Captures and graphs.

TEST_F(RuntimeTest, GraphsRunWhatWasCaptured) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Seed(seed);
    EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    EXPECT_OK(cudaStreamIsCapturing(stream_, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusActive);
    Add(2);
    Add(3);
    cudaGraph_t graph = nullptr;
    EXPECT_OK(cudaStreamEndCapture(stream_, &graph));
    size_t num_nodes = 0;
    EXPECT_OK(cudaGraphGetNodes(graph, nullptr, &num_nodes));
    EXPECT_EQ(num_nodes, 2u);
    cudaGraphExec_t executable = nullptr;
    EXPECT_OK(cudaGraphInstantiate(&executable, graph));
    EXPECT_OK(cudaGraphDestroy(graph));
    EXPECT_OK(cudaStreamSynchronize(stream_));
    EXPECT_EQ(Read(), 0) << "nothing ran yet";
    EXPECT_OK(cudaGraphLaunch(executable, stream_));
    EXPECT_OK(cudaGraphLaunch(executable, stream_));
    EXPECT_OK(cudaGraphExecDestroy(executable));
    EXPECT_EQ(Read(), 10);
    EXPECT_OK(cudaMemsetAsync(value_, 0, sizeof(int), stream_));
  }
}

TEST_F(RuntimeTest, CapturesSpreadOverStreams) {
  cudaStream_t side = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  EXPECT_OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  EXPECT_OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  EXPECT_OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
  for (const bool joined : {true, false}) {
    EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    EXPECT_OK(cudaEventRecord(fork, stream_));
    EXPECT_OK(cudaStreamWaitEvent(side, fork));
    Launch(AddTo, {.blocks = 1, .threads = 1}, side, value_, 2);
    EXPECT_OK(cudaEventRecord(join, side));
    if (joined) EXPECT_OK(cudaStreamWaitEvent(stream_, join));
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph),
              joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(graph != nullptr, joined);
    if (joined) EXPECT_OK(cudaGraphDestroy(graph));
  }
  EXPECT_OK(cudaStreamDestroy(side));
  EXPECT_OK(cudaEventDestroy(fork));
  EXPECT_OK(cudaEventDestroy(join));
}

TEST_F(RuntimeTest, ForbiddenCallsSpoilCaptures) {
  void* pointer = nullptr;
  cudaEvent_t event = nullptr;
  int value = 0;
  EXPECT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  EXPECT_OK(cudaEventRecord(event, stream_));
  const std::function<cudaError_t()> calls[] = {
      [&] { return cudaMalloc(&pointer, 4); },
      [&] { return cudaFree(value_); },
      [&] { return cudaMallocHost(&pointer, 4); },
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaStreamQuery(stream_); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaEventQuery(event); },
      [&] { return cudaMemcpy(&value, value_, sizeof(int), cudaMemcpyDeviceToHost); },
  };
  for (const auto& call : calls) {
    cudaGraph_t graph = nullptr;
    EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  }
  EXPECT_OK(cudaEventDestroy(event));
}

TEST_F(RuntimeTest, CapturesOfOtherThreads) {
  const auto malloc_elsewhere = [](cudaError_t* error) {
    std::thread([error] {
      void* pointer = nullptr;
      *error = cudaMalloc(&pointer, 4);
      cudaFree(pointer);
    }).join();
  };
  cudaError_t error = cudaSuccess;
  cudaGraph_t graph = nullptr;
  EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  malloc_elsewhere(&error);
  EXPECT_OK(error);
  EXPECT_OK(cudaStreamEndCapture(stream_, &graph));
  EXPECT_OK(cudaGraphDestroy(graph));
  EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  malloc_elsewhere(&error);
  EXPECT_EQ(error, cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
}

// Launches, memory and devices.

TEST_F(RuntimeTest, WrongLaunchesAreRefused) {
  const auto launch = [this](dim3 blocks, dim3 threads, size_t shared_bytes) {
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    const cudaError_t error = cudaLaunchKernelEx(&config, AddTo, value_, 1);
    EXPECT_EQ(cudaPeekAtLastError(), error);
    EXPECT_EQ(cudaGetLastError(), error);
    EXPECT_OK(cudaGetLastError());
    return error;
  };
  EXPECT_OK(launch(1, 1, 48 << 10));
  EXPECT_EQ(launch(0, 1, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 1025, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1, 65536), 1, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(1, 1, (48 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(AddTo, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_OK(cudaFuncSetAttribute(AddTo, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10));
  EXPECT_OK(launch(1, 1, 100 << 10));
  EXPECT_EQ(Read(), 2);
}

TEST_F(RuntimeTest, MemoryIsPoisonedAndLimited) {
  size_t free_before = 0, free_after = 0, total = 0;
  EXPECT_OK(cudaMemGetInfo(&free_before, &total));
  EXPECT_EQ(total, kDefaultMemoryBytes);
  unsigned char* memory = nullptr;
  EXPECT_OK(cudaMalloc(&memory, free_before)) << "is not taken before it is used";
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u);
  EXPECT_OK(cudaMemGetInfo(&free_after, &total));
  EXPECT_EQ(free_after, 0u);
  void* more = nullptr;
  EXPECT_EQ(cudaMalloc(&more, 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(more, nullptr);
  EXPECT_OK(cudaMalloc(&more, 0));
  EXPECT_EQ(memory[0], 0xff);
  EXPECT_EQ(memory[free_before - 1], 0xff);
  EXPECT_OK(cudaMemsetAsync(memory + 1, 0, free_before - 2, stream_));
  EXPECT_OK(cudaStreamSynchronize(stream_));
  EXPECT_EQ(memory[0], 0xff);
  EXPECT_EQ(memory[1], 0);
  EXPECT_EQ(memory[free_before / 2], 0);
  EXPECT_EQ(memory[free_before - 2], 0);
  EXPECT_EQ(memory[free_before - 1], 0xff);
  EXPECT_OK(cudaFree(memory));
  EXPECT_OK(cudaFree(nullptr));
  EXPECT_EQ(cudaFree(&total), cudaErrorInvalidValue);
}

TEST(Devices, AreAsManyAsWanted) {
  int count = -1;
  SetDevices(0);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorInvalidDevice);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorNoDevice);
  SetDevices(2, 1 << 20);
  EXPECT_OK(cudaGetDeviceCount(&count));
  EXPECT_EQ(count, 2);
  EXPECT_OK(cudaSetDevice(1));
  cudaDeviceProp properties;
  EXPECT_OK(cudaGetDeviceProperties(&properties, 1));
  EXPECT_EQ(properties.totalGlobalMem, size_t{1} << 20);
  EXPECT_EQ(properties.multiProcessorCount, 132);
  EXPECT_EQ(cudaMalloc(&pointer, (1 << 20) + 1), cudaErrorMemoryAllocation);
  EXPECT_OK(cudaMalloc(&pointer, 1 << 20));
  cudaPointerAttributes attributes;
  EXPECT_OK(cudaPointerGetAttributes(&attributes, pointer));
  EXPECT_EQ(attributes.device, 1);
  EXPECT_OK(cudaFree(pointer));
  EXPECT_OK(cudaSetDevice(0));
  SetDriverVersion(12000);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  SetDriverVersion(13000);
  SetDevices(1);
  cudaGetLastError();
}

TEST(Devices, OccupancyCountsThreadsAndSharedMemory) {
  int blocks = 0;
  const auto occupancy = [&blocks](int threads, size_t shared_bytes) {
    EXPECT_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, AddTo, threads, shared_bytes));
    return blocks;
  };
  EXPECT_EQ(occupancy(256, 0), 8);
  EXPECT_EQ(occupancy(32, 0), 32);
  EXPECT_EQ(occupancy(128, 100 << 10), 2);
}

TEST(Devices, ThreadsWorkByThemselves) {
  SetDevices(4);
  const auto work = [](int device) {
    EXPECT_OK(cudaSetDevice(device));
    int* value = nullptr;
    cudaStream_t stream = nullptr;
    EXPECT_OK(cudaMalloc(&value, sizeof(int)));
    EXPECT_OK(cudaStreamCreate(&stream));
    EXPECT_OK(cudaMemsetAsync(value, 0, sizeof(int), stream));
    int result = 0;
    for (int i = 0; i < 50; ++i) {
      Launch(AddTo, {.blocks = 3, .threads = 64}, stream, value, device);
    }
    EXPECT_OK(cudaMemcpyAsync(&result, value, sizeof(int), cudaMemcpyDeviceToHost, stream));
    EXPECT_EQ(result, 50 * 3 * 64 * device);
    EXPECT_OK(cudaStreamDestroy(stream));
    EXPECT_OK(cudaFree(value));
  };
  std::vector<std::thread> threads;
  for (int device = 0; device < 4; ++device) threads.emplace_back(work, device);
  for (std::thread& thread : threads) thread.join();
  SetDevices(1);
}

// Trouble.

TEST_F(RuntimeTest, FailedKernelsSpoilTheDevice) {
  Seed(1);
  FailNextKernel(0, cudaErrorIllegalAddress);
  Add(1);
  Add(2);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, 4), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaMemsetAsync(value_, 0, 4, stream_), cudaErrorIllegalAddress);
  Recover(0);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(Read(), 3) << "as if it had been slow";
}

TEST_F(RuntimeTest, RefusedLaunchesLeaveTheDeviceAlone) {
  RefuseNextLaunch(0, cudaErrorLaunchOutOfResources);
  Add(1);
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchOutOfResources);
  Add(2);
  EXPECT_OK(cudaGetLastError());
  EXPECT_EQ(Read(), 2);
}

TEST_F(RuntimeTest, HungDevicesDoNothing) {
  cudaEvent_t event = nullptr;
  EXPECT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  Hang(0);
  Add(1);
  EXPECT_OK(cudaEventRecord(event, stream_));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  Recover(0);
  EXPECT_OK(cudaEventSynchronize(event));
  EXPECT_OK(cudaEventDestroy(event));
  EXPECT_EQ(Read(), 1);
}

TEST_F(RuntimeDeathTest, EndlessWaitsAreReported) {
  Hang(0);
  Add(1);
  int value = 0;
  EXPECT_DEATH(cudaStreamSynchronize(stream_),
               "cudaStreamSynchronize waits for a device that hangs");
  EXPECT_DEATH(cudaDeviceSynchronize(), "cudaDeviceSynchronize waits for a device that hangs");
  EXPECT_DEATH(cudaFree(value_), "cudaFree waits for a device that hangs");
  EXPECT_DEATH(cudaMemcpyAsync(&value, value_, 4, cudaMemcpyDeviceToHost, stream_),
               "waits for a device that hangs");
}

TEST_F(RuntimeDeathTest, WrongAddressesAreReported) {
  int host = 0;
  int* freed = nullptr;
  EXPECT_OK(cudaMalloc(&freed, sizeof(int)));
  EXPECT_OK(cudaFree(freed));
  const auto add = [this](const int* second) {
    Launch(AddOther, {.blocks = 1, .threads = 1}, stream_, Pointers{value_, second});
  };
  EXPECT_DEATH(add(&host),
               "kernel .*AddOther gets .* on device 0 as second: no memory of a device");
  EXPECT_DEATH(add(freed), "kernel .*AddOther gets .* as second: byte 0 of a freed device");
  EXPECT_DEATH(cudaMemcpyAsync(value_, pinned_, 8, cudaMemcpyHostToDevice, stream_),
               "copy to 8 bytes from byte 0 of a device allocation of 4 bytes");
  EXPECT_DEATH(cudaMemsetAsync(value_, 0, 5, stream_), "memset of 5 bytes");
  EXPECT_DEATH(*freed = 1, "host code.*byte 0 of a freed device allocation");
}

TEST_F(RuntimeDeathTest, FreeingWhatIsUsedIsReported) {
  Hang(0);  // so that nothing runs before the call
  Add(1);
  EXPECT_OK(cudaMemcpyAsync(value_, pinned_, 4, cudaMemcpyHostToDevice, stream_));
  const auto free = [this] {
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      Seed(seed);
      Recover(0);
      Add(1);
      cudaFree(value_);
    }
  };
  EXPECT_DEATH(free(), "cudaFree of memory that enqueued work still uses: .*AddTo");
}

TEST_F(RuntimeDeathTest, MemoryOfOtherDevicesIsReported) {
  // In a process of its own, which has two devices.
  const auto use = [] {
    SetDevices(2);
    int* value = nullptr;
    cudaMalloc(&value, sizeof(int));
    cudaSetDevice(1);
    Launch(AddTo, {.blocks = 1, .threads = 1}, nullptr, value, 1);
  };
  cudaStreamDestroy(stream_);
  cudaFree(value_);
  EXPECT_DEATH(use(), "gets .* on device 1: byte 0 of a device allocation of 4 bytes on device 0");
  EXPECT_OK(cudaMalloc(&value_, sizeof(int)));
  EXPECT_OK(cudaStreamCreate(&stream_));
  EXPECT_DEATH(SetDevices(2), "SetDevices\\(\\) while a device has 1 streams");
}

}  // namespace
}  // namespace cuda_emulation
