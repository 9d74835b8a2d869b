// The tensors that a checkpoint of a model holds: names and shapes, Hugging Face layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/model_config.h"

namespace shoal {

/// One tensor of a checkpoint. Matrices are [out_features, in_features].
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  int expert = -1;  // the routed expert that it belongs to; -1: every rank needs it
};

/// Every tensor of the model, layer by layer (model_spec section 3).
std::vector<TensorSpec> CheckpointLayout(const ModelConfig& config);

}  // namespace shoal
