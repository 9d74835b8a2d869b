// Random weights made on the device: a model of any shape without a checkpoint to read.
#pragma once

#include "engine/model/weights.h"

namespace shoal {

struct RandomWeightsOptions {
  uint64_t seed = 0;
  // How unequal the experts are: the logits of each have a deviation of their own, e to the power
  // of routing_skew times a standard normal number. 0: all alike. With 0.3 and 16B's gate the
  // busiest of a layer's 64 experts gets 2.6 times its even share and the idlest a tenth, and 64
  // tokens go to 60 of them.
  float routing_skew = 0.3f;
};

/// The weights of `backend`'s rank, as LoadModelWeights gives those of a checkpoint. They keep what
/// flows through the model near what a trained one has: matrices neither grow nor shrink their
/// input, and logits have a deviation of 3. A weight depends on the seed and its place in the model
/// alone, so every number of ranks has the same model. RESOURCE_EXHAUSTED if the device is too
/// small. Thread: the rank's worker.
absl::StatusOr<ModelWeights> MakeRandomWeights(const ModelConfig& config,
                                               const RandomWeightsOptions& options, DType dtype,
                                               const ExpertPlacement& placement, Backend& backend,
                                               const LoadProgress& progress);

}  // namespace shoal
