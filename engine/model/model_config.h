// ModelConfig: config.json of a DeepSeekMoE checkpoint (Hugging Face layout, model_type
// "deepseek").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/ops.h"
#include "kernels/status.h"

namespace shoal {

struct RopeScaling {
  enum class Type { kNone, kLinear, kDynamic };
  Type type = Type::kNone;
  double factor = 1;

  bool operator==(const RopeScaling&) const = default;
};

/// Shape and constants of a model. Field names are config.json's; defaults are those of the
/// published configuration class, for keys that the file leaves out.
struct ModelConfig {
  int64_t vocab_size = 102400;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;     // width of a dense layer
  int64_t moe_intermediate_size = 1407;  // width of one expert
  int num_hidden_layers = 30;
  int num_attention_heads = 32;
  int num_key_value_heads = 32;
  int n_routed_experts = 0;  // 0: every layer is dense
  int n_shared_experts = 0;  // 0: no shared expert
  int num_experts_per_tok = 0;
  int first_k_dense_replace = 0;
  int moe_layer_freq = 1;
  bool norm_topk_prob = false;
  int64_t max_position_embeddings = 2048;
  float rms_norm_eps = 1e-6f;
  double rope_theta = 10000;
  RopeScaling rope_scaling = {};
  bool attention_bias = false;
  bool tie_word_embeddings = false;
  int32_t bos_token_id = 100000;  // -1: none
  int32_t eos_token_id = 100001;  // -1: none
  DType torch_dtype = DType::kBFloat16;
  double initializer_range = 0.02;

  int head_dim() const { return static_cast<int>(hidden_size / num_attention_heads); }
  /// Layer i routes iff there are experts, i >= first_k_dense_replace and i % moe_layer_freq == 0.
  bool is_moe_layer(int layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  /// Experts of a MoE layer: the routed ones, then the shared ones.
  int num_experts() const { return n_routed_experts > 0 ? n_routed_experts + n_shared_experts : 0; }
  /// Experts that one token goes to.
  int num_routes() const { return num_experts_per_tok + n_shared_experts; }
  /// Width of the network that a checkpoint holds for all shared experts together.
  int64_t shared_width() const { return n_shared_experts * moe_intermediate_size; }
  AttentionShape attention_shape() const {
    return {num_attention_heads, num_key_value_heads, head_dim()};
  }
  /// Weights of the whole model, all experts.
  int64_t num_parameters() const;

  bool operator==(const ModelConfig&) const = default;
};

/// Parses and checks config.json. INVALID_ARGUMENT names the field, its value and what is
/// supported; keys that do not change the computation are ignored. Every number is bounded so that
/// no product of sizes overflows int64.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);

/// Reads `directory`/config.json. NOT_FOUND or INVALID_ARGUMENT, with the path.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);

/// config.json of the same model, for a checkpoint that we write.
std::string FormatModelConfig(const ModelConfig& config);

/// The paper's models: "tiny" (16B's structure, small), "2b", "16b", "145b". INVALID_ARGUMENT lists
/// the names.
absl::StatusOr<ModelConfig> PresetModelConfig(std::string_view name);

}  // namespace shoal
