// What tests of the emulator's kernels share.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/cuda_emulation/emulator.h"

namespace cuda_emulation {

inline constexpr int kSeeds = 20;
inline constexpr unsigned int kAllLanes = 0xffffffffu;

/// Device memory of `size` T.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    EXPECT_EQ(cudaMalloc(&data_, size * sizeof(T)), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

/// One block of so many threads, and what comes of it.
template <typename... Parameters, typename... Arguments>
void RunBlock(void (*kernel)(Parameters...), unsigned int threads, size_t shared_bytes,
              Arguments... arguments) {
  shoal::cuda::Launch(kernel, {.blocks = 1, .threads = threads, .shared_bytes = shared_bytes},
                      nullptr, arguments...);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

/// On how many seeds `run` gives false.
template <typename Run>
int SeedsThatFail(const Run& run) {
  int failed = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    failed += run() ? 0 : 1;
  }
  return failed;
}

}  // namespace cuda_emulation

/// Dies with `report` on the first seed that dies.
#define EXPECT_REPORT(statement, report)                               \
  EXPECT_DEATH(                                                        \
      {                                                                \
        for (int seed = 1; seed <= ::cuda_emulation::kSeeds; ++seed) { \
          ::cuda_emulation::Seed(static_cast<uint64_t>(seed));         \
          statement;                                                   \
        }                                                              \
      },                                                               \
      report)
