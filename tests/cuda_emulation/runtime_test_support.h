// What tests of the emulated runtime share.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/cuda/launch.h"
#include "tests/cuda_emulation/kernel_test_support.h"

#define EXPECT_OK(call) EXPECT_EQ((call), cudaSuccess)

namespace cuda_emulation {

inline void AddTo(int* value, int summand) { *value += summand; }

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

  void Add(int summand) {
    shoal::cuda::Launch(AddTo, {.blocks = 1, .threads = 1}, stream_, value_, summand);
  }
  /// Devices can access pinned memory, too.
  void AddToPinned(int summand) {
    shoal::cuda::Launch(AddTo, {.blocks = 1, .threads = 1}, stream_, pinned_, summand);
  }
  int Read() {
    int value = 0;
    EXPECT_OK(cudaMemcpyAsync(&value, value_, sizeof(int), cudaMemcpyDeviceToHost, stream_));
    return value;
  }

  int* value_ = nullptr;
  int* pinned_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace cuda_emulation
