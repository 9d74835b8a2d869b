// Random numbers for weights that no checkpoint gives.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace shoal::cuda {

/// Ops::FillNormal. out is aligned to 16 bytes.
struct FillNormalArgs {
  void* out = nullptr;  // [num_elements] bfloat16, or float32
  bool float_out = false;
  int64_t num_elements = 0;
  uint64_t seed = 0;
  float stddev = 0;
};
void FillNormal(const FillNormalArgs& args, cudaStream_t stream);

}  // namespace shoal::cuda
