// MemoryPlan: what the memory of a rank's device is for.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/expert_placement.h"
#include "engine/model/model_config.h"
#include "kernels/tensor.h"

namespace shoal {

/// Bytes on one rank's device.
struct MemoryPlan {
  int64_t weight_bytes = 0;
  int64_t activation_bytes = 0;  // inputs, activations and outputs of a step, the token history and
                                 // the working memory of the ops
  int64_t kv_cache_bytes = 0;
  int32_t num_kv_blocks = 0;
  int64_t left_bytes = 0;  // that the device would still give
};

/// In one line, for people.
std::string Describe(const MemoryPlan& plan);

/// Bytes of the weights that a rank loads, stored as `dtype`.
int64_t WeightBytes(const ModelConfig& model, DType dtype, const ExpertPlacement& placement,
                    int rank);

}  // namespace shoal
