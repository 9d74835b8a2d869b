// Kernels that measure the machine and not the model.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace shoal::bench {

/// Reads `bytes`, a multiple of 16, once. sums: num_blocks * kReadThreads words, written so that
/// no load can be left out.
inline constexpr int kReadThreads = 512;
struct ReadArgs {
  const void* data = nullptr;
  int64_t bytes = 0;
  uint32_t* sums = nullptr;
  int num_blocks = 0;
};
void ReadMemory(const ReadArgs& args, cudaStream_t stream);

/// Adds one to *counter, by a single thread: a kernel as short as one can be that depends on the
/// one before it.
void Increment(int32_t* counter, cudaStream_t stream);

}  // namespace shoal::bench
