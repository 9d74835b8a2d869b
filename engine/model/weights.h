// ModelWeights: every weight of the model on one rank's device.
#pragma once

#include <functional>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/expert_placement.h"
#include "engine/model/model_config.h"
#include "kernels/backend.h"

namespace shoal {

/// Weights of one decoder layer. Checkpoint names are below model.layers.{i}.
struct LayerWeights {
  Norm input_norm;           // input_layernorm.weight
  Weight qkv;                // self_attn.{q,k,v}_proj.weight, one under the other
  Tensor qkv_bias;           // self_attn.{q,k,v}_proj.bias, or empty
  Weight o;                  // self_attn.o_proj.weight [hidden_size, num_heads * head_dim]
  Tensor o_bias;             // self_attn.o_proj.bias, or empty
  Norm post_attention_norm;  // post_attention_layernorm.weight
  FfnWeights dense;          // mlp.{gate,up,down}_proj.weight; empty in a MoE layer
  Router router;             // mlp.gate.weight; empty in a dense layer
  LocalExperts experts;      // this rank's, by place: mlp.experts.{e}.*, and mlp.shared_experts.*,
                             // of which each shared expert is an equal part of the width
};

struct ModelWeights {
  Weight embedding;  // model.embed_tokens.weight [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  Norm norm;       // model.norm.weight
  Weight lm_head;  // lm_head.weight, or embedding if tied
  int experts_per_rank = 0;
  Tensor expert_places;  // [num_experts] int32: the place of each expert that serves this rank's
                         // tokens; empty on a single rank
};

/// Called now and then while weights load: bytes read so far, and of how many.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

/// Loads the weights that `backend`'s rank needs, stored as `dtype`: everything but the other
/// ranks' experts. `placement` is of as many ranks. Before the first byte is read the whole
/// checkpoint is held against the config: NOT_FOUND names a tensor that is missing,
/// INVALID_ARGUMENT one of another shape (with both shapes) or one that this model has no use for.
/// RESOURCE_EXHAUSTED if the device is too small. Thread: the rank's worker.
absl::StatusOr<ModelWeights> LoadModelWeights(const ModelConfig& config,
                                              const Checkpoint& checkpoint, DType dtype,
                                              const ExpertPlacement& placement, Backend& backend,
                                              const LoadProgress& progress);

/// Fills in where experts are: experts_per_rank and expert_places of `weights`.
absl::Status LoadExpertPlaces(const ExpertPlacement& placement, Backend& backend,
                              ModelWeights& weights);

}  // namespace shoal
