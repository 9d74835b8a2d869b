// The emulated runtime: devices, memory, launches, and trouble with them.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/cuda_emulation/runtime_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::Launch;

using RuntimeDeathTest = RuntimeTest;

volatile int host_sink = 0;

struct Pointers {
  int* first;
  const int* second;
};

void AddOther(Pointers values) { *values.first += *values.second; }
void CopyNext(Pointers values) { values.first[1] = values.second[1]; }

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

int ByteAt(const unsigned char* device) {
  unsigned char byte = 0;
  EXPECT_OK(cudaMemcpy(&byte, device, 1, cudaMemcpyDeviceToHost));
  return byte;
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
  EXPECT_EQ(ByteAt(memory), 0xff);
  EXPECT_EQ(ByteAt(memory + free_before - 1), 0xff);
  EXPECT_OK(cudaMemsetAsync(memory + 1, 0, free_before - 2, stream_));
  EXPECT_OK(cudaStreamSynchronize(stream_));
  EXPECT_EQ(ByteAt(memory), 0xff);
  EXPECT_EQ(ByteAt(memory + 1), 0);
  EXPECT_EQ(ByteAt(memory + free_before / 2), 0);
  EXPECT_EQ(ByteAt(memory + free_before - 2), 0);
  EXPECT_EQ(ByteAt(memory + free_before - 1), 0xff);
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
  const auto read = [this] {
    for (int seed = 1; seed <= kSeeds; ++seed) {
      Seed(static_cast<uint64_t>(seed));
      Add(1);
      cudaStreamSynchronize(stream_);
      host_sink = *value_;
    }
  };
  EXPECT_DEATH(read(), "host code.*byte 0 of a device allocation of 4 bytes");
}

TEST_F(RuntimeDeathTest, WhatIsCopiedFromBesideToBesideIsReported) {
  int* other = nullptr;
  EXPECT_OK(cudaMalloc(&other, sizeof(int)));
  const auto copy = [this, other] {
    Launch(CopyNext, {.blocks = 1, .threads = 1}, stream_, Pointers{value_, other});
    cudaDeviceSynchronize();
  };
  EXPECT_DEATH(copy(), "something was written 0 bytes past the end of an allocation of 4 bytes");
  EXPECT_OK(cudaFree(other));
}

TEST_F(RuntimeDeathTest, FreeingWhatIsUsedIsReported) {
  Hang(0);  // so that nothing runs before the call
  Add(1);
  EXPECT_OK(cudaMemcpyAsync(value_, pinned_, 4, cudaMemcpyHostToDevice, stream_));
  const auto free = [this] {
    for (int seed = 1; seed <= kSeeds; ++seed) {
      Seed(static_cast<uint64_t>(seed));
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
