// Matrix products: linear layers and feed-forward networks, all by one family of kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bfloat16.h"

namespace shoal::cuda {

/// out[t, o] = sum over i of x[t, i] * weight[o, i], plus bias[o]. in_features is a multiple of 8.
struct LinearArgs {
  const BFloat16* x = nullptr;       // [num_tokens, in_features]
  const BFloat16* weight = nullptr;  // [>= num_outputs, in_features]
  const BFloat16* bias = nullptr;    // [num_outputs], or null
  void* out = nullptr;               // [num_tokens, num_outputs] bfloat16, or float32
  bool float_out = false;
  int64_t num_tokens = 0;
  int64_t in_features = 0;
  int64_t num_outputs = 0;
};

/// Enqueues the product. A row's result depends on neither num_tokens nor its neighbours.
void Linear(const LinearArgs& args, cudaStream_t stream);

/// Feed-forward networks as the device stores them. hidden_size and width are multiples of 8,
/// num_experts is at most 512.
struct FfnShape {
  int64_t num_experts = 0;
  int64_t hidden_size = 0;
  int64_t width = 0;
};

/// rows[t, k] = expert expert_ids[t, k] - first_expert of x[t], where that is in [0, num_experts);
/// other rows are not written. With expert_ids null every token goes to expert 0, num_routes is 1.
struct FfnArgs {
  FfnShape shape = {};
  const BFloat16* gate_up = nullptr;    // [num_experts, width / 8, 2 (gate, up), 8, hidden_size]
  const BFloat16* down = nullptr;       // [num_experts, hidden_size, width]
  const BFloat16* x = nullptr;          // [num_tokens, hidden_size]
  const int32_t* expert_ids = nullptr;  // [num_tokens, num_routes]
  int first_expert = 0;
  int64_t num_tokens = 0;
  int64_t num_routes = 1;
  BFloat16* rows = nullptr;   // [num_tokens, num_routes, hidden_size]
  void* workspace = nullptr;  // FfnWorkspaceBytes(), aligned to 256 bytes
};

/// Bytes of working memory that Ffn() needs for so many rows (num_tokens * num_routes) at most.
size_t FfnWorkspaceBytes(const FfnShape& shape, int64_t num_rows);

/// Enqueues the plan (which rows each expert has), gate and up with SwiGLU, and down.
void Ffn(const FfnArgs& args, cudaStream_t stream);

}  // namespace shoal::cuda
