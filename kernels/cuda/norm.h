// RMSNorm with what stands around it: the residual, the router, the combination of experts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bfloat16.h"

namespace shoal::cuda {

/// residual [num_tokens, hidden_size] is updated, then out = RMSNorm of it. hidden_size is a
/// multiple of 8, at most 16384.
struct NormArgs {
  BFloat16* residual = nullptr;      // [num_tokens, hidden_size]
  const BFloat16* weight = nullptr;  // [hidden_size]
  float epsilon = 0;
  BFloat16* out = nullptr;  // [num_tokens, hidden_size]
  int64_t num_tokens = 0;
  int64_t hidden_size = 0;
};

/// Ops::Routing. num_routes is at most 32. num_real_tokens [1], or null: all are.
struct RoutingArgs {
  int32_t* expert_ids = nullptr;  // [num_tokens, num_routes]
  float* weights = nullptr;       // [num_tokens, num_routes]
  const int32_t* num_real_tokens = nullptr;
  int num_routes = 0;
};

/// Ops::Router. num_experts is at most 256.
struct RouterArgs {
  const BFloat16* weight = nullptr;  // [num_experts, hidden_size]
  int num_experts = 0;
  int num_shared = 0;
  bool renormalize = false;
};

/// delta [num_tokens, hidden_size], or null.
void AddRmsNorm(const NormArgs& args, const BFloat16* delta, cudaStream_t stream);
void AddRmsNormRoute(const NormArgs& args, const BFloat16* delta, const RouterArgs& router,
                     const RoutingArgs& routing, cudaStream_t stream);

/// rows [num_tokens, num_routes, hidden_size].
void Combine(const NormArgs& args, const BFloat16* rows, const RoutingArgs& routing,
             cudaStream_t stream);

}  // namespace shoal::cuda
