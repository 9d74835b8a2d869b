// The roofline of a forward pass: the bytes that it must read and the products that it must
// compute, however well it is written.
#pragma once

#include <cstdint>

#include "engine/model/model_config.h"

namespace shoal {

/// What one forward pass does.
struct ForwardWork {
  int64_t num_tokens = 0;
  int64_t num_logits_rows = 0;
  int64_t num_cached_tokens = 0;  // whose keys and values are read, of all sequences together
  int64_t num_attended = 0;       // (query, key) pairs, of one layer
  double num_experts = 0;         // routed experts that have tokens, of all layers together
};

/// Routed experts that `num_tokens` tokens go to, of all layers together, if each goes to any of
/// them alike: with real routing, which is skewed, they are fewer.
double ExpectedExperts(const ModelConfig& config, int64_t num_tokens);

/// Decoding one token of each sequence, by ExpectedExperts.
ForwardWork DecodeWork(const ModelConfig& config, int64_t num_sequences, int64_t context_tokens);

/// Bytes of the weights and of the keys and values, each read once; activations are not counted.
double ForwardBytes(const ModelConfig& config, DType dtype, const ForwardWork& work);

/// Floating-point operations, a multiply-add being two.
double ForwardFlops(const ModelConfig& config, const ForwardWork& work);

}  // namespace shoal
