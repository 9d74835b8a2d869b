// Weights as a backend keeps them. The layout behind the pointers is the backend's own choice, made
// at load (Device::LoadWeight, LoadFfn), so packing and quantisation are invisible to the model.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace shoal {

/// A matrix [out_features, in_features] for Ops::Linear and Ops::Embed.
struct Weight {
  DType dtype = DType::kFloat32;
  int64_t out_features = 0;
  int64_t in_features = 0;
  const void* data = nullptr;

  bool empty() const { return data == nullptr; }
};

/// Gated feed-forward networks down(silu(gate(x)) * up(x)), one per expert. A dense network is one
/// expert. gate, up: [width, hidden_size]; down: [hidden_size, width].
struct FfnWeights {
  DType dtype = DType::kFloat32;
  int64_t num_experts = 0;
  int64_t hidden_size = 0;
  int64_t width = 0;
  const void* gate_up = nullptr;
  const void* down = nullptr;

  bool empty() const { return gate_up == nullptr; }
};

}  // namespace shoal
