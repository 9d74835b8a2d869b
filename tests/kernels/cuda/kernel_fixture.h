// What the tests of kernels share that call the launchers themselves: memory of the device, and a
// seed. They run on the device or under the emulator.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/bfloat16.h"
#ifdef SHOAL_EMULATION_SEEDS
#include "tests/cuda_emulation/emulator.h"
#endif

namespace shoal::cuda {

/// Values in device memory, which ends where they do.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(size_, 1) * sizeof(T)),
              cudaSuccess);
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  DeviceArray(size_t size, T value) : DeviceArray(std::vector<T>(size, value)) {}
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

inline std::vector<uint16_t> Bits(const std::vector<BFloat16>& values) {
  std::vector<uint16_t> bits;
  for (BFloat16 value : values) bits.push_back(value.bits);
  return bits;
}

inline std::vector<float> Floats(const std::vector<BFloat16>& values) {
  return {values.begin(), values.end()};
}

/// The parameter seeds the values and, under the emulator, its schedule.
class KernelTest : public testing::TestWithParam<int> {
 public:
  static auto Seeds() {
#ifdef SHOAL_EMULATION_SEEDS
    return testing::Range(1, SHOAL_EMULATION_SEEDS + 1);
#else
    return testing::Range(1, 4);
#endif
  }

 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no device";
#ifdef SHOAL_EMULATION_SEEDS
    cuda_emulation::Seed(GetParam());
#endif
    random_.seed(GetParam());
  }

  std::vector<float> RandomFloats(int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::vector<BFloat16> Random(int64_t count, float scale = 1) {
    const std::vector<float> values = RandomFloats(count, scale);
    return {values.begin(), values.end()};
  }
  /// From first to last.
  int Between(int first, int last) { return std::uniform_int_distribution(first, last)(random_); }

  std::mt19937 random_;
};

}  // namespace shoal::cuda
