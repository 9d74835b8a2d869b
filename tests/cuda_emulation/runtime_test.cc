// The emulated runtime: when streams do their work, events, copies.
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "tests/cuda_emulation/runtime_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::Launch;

TEST_F(RuntimeTest, WorkIsDoneInOrderAtSomeTime) {
  std::set<int> seen_early;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    *pinned_ = 0;
    for (int i = 1; i <= 3; ++i) AddToPinned(i);
    seen_early.insert(*pinned_);  // what no program may do
    EXPECT_OK(cudaStreamSynchronize(stream_));
    EXPECT_EQ(*pinned_, 6);
  }
  EXPECT_TRUE(seen_early.contains(0));
  EXPECT_TRUE(seen_early.contains(6));
  EXPECT_GT(seen_early.size(), 2u);
}

TEST_F(RuntimeTest, PageableMemoryIsReadAtOnce) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    int value = 5;
    EXPECT_OK(cudaMemcpyAsync(value_, &value, sizeof(int), cudaMemcpyHostToDevice, stream_));
    value = 6;
    EXPECT_EQ(Read(), 5);
  }
}

TEST_F(RuntimeTest, PinnedMemoryIsReadAndWrittenLater) {
  int changed = 0;
  int unwritten = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
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
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
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
  EXPECT_GT(polls.size(), 1u);
  EXPECT_EQ(Read(), 5 * kSeeds);
}

TEST_F(RuntimeTest, EventsArePassedInOrder) {
  cudaEvent_t event = nullptr;
  EXPECT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  EXPECT_OK(cudaEventQuery(event)) << "never recorded";
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    *pinned_ = 0;
    AddToPinned(1);
    EXPECT_OK(cudaEventRecord(event, stream_));
    AddToPinned(100);
    if (seed % 2 == 0) {
      EXPECT_OK(cudaEventSynchronize(event));
    } else {
      while (cudaEventQuery(event) == cudaErrorNotReady) {
      }
    }
    EXPECT_TRUE(*pinned_ == 1 || *pinned_ == 101) << *pinned_;
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
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
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
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
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

}  // namespace
}  // namespace cuda_emulation
