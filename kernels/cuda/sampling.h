// The choice of tokens.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/records.h"

namespace shoal::cuda {

/// Ops::Sample; the names and shapes are its own.
struct SampleArgs {
  const float* logits = nullptr;      // [num_rows, vocab]
  const SamplingRow* rows = nullptr;  // [num_rows]
  int32_t* history = nullptr;
  const LogitBias* biases = nullptr;
  const int32_t* masks = nullptr;
  SampledRow* out = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  int64_t vocab = 0;          // at most 2^22
  int64_t max_model_len = 0;  // columns of history
  void* workspace = nullptr;  // SampleWorkspaceBytes(), aligned to 256 bytes
};

size_t SampleWorkspaceBytes(int64_t num_rows, int64_t vocab);
void Sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace shoal::cuda
