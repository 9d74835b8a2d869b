#include "engine/model/checkpoint_layout.h"

namespace shoal {
namespace {

void AddFfn(const std::string& prefix, int64_t hidden_size, int64_t width, int expert,
            std::vector<TensorSpec>& layout) {
  layout.push_back({prefix + ".gate_proj.weight", {width, hidden_size}, expert});
  layout.push_back({prefix + ".up_proj.weight", {width, hidden_size}, expert});
  layout.push_back({prefix + ".down_proj.weight", {hidden_size, width}, expert});
}

void AddAttention(const std::string& prefix, const ModelConfig& config,
                  std::vector<TensorSpec>& layout) {
  const int64_t query_width = int64_t{config.num_attention_heads} * config.head_dim();
  const int64_t kv_width = int64_t{config.num_key_value_heads} * config.head_dim();
  const auto add = [&](const char* name, int64_t out_features, int64_t in_features) {
    layout.push_back({prefix + name + ".weight", {out_features, in_features}});
    if (config.attention_bias) layout.push_back({prefix + name + ".bias", {out_features}});
  };
  add(".q_proj", query_width, config.hidden_size);
  add(".k_proj", kv_width, config.hidden_size);
  add(".v_proj", kv_width, config.hidden_size);
  add(".o_proj", config.hidden_size, query_width);
}

void AddMoe(const std::string& prefix, const ModelConfig& config, std::vector<TensorSpec>& layout) {
  layout.push_back({prefix + ".gate.weight", {config.n_routed_experts, config.hidden_size}});
  for (int expert = 0; expert < config.n_routed_experts; ++expert) {
    AddFfn(fmt::format("{}.experts.{}", prefix, expert), config.hidden_size,
           config.moe_intermediate_size, expert, layout);
  }
  if (config.n_shared_experts > 0) {
    AddFfn(prefix + ".shared_experts", config.hidden_size, config.shared_width(), -1, layout);
  }
}

}  // namespace

std::vector<TensorSpec> CheckpointLayout(const ModelConfig& config) {
  std::vector<TensorSpec> layout;
  layout.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}", i);
    layout.push_back({prefix + ".input_layernorm.weight", {config.hidden_size}});
    AddAttention(prefix + ".self_attn", config, layout);
    layout.push_back({prefix + ".post_attention_layernorm.weight", {config.hidden_size}});
    if (config.is_moe_layer(i)) {
      AddMoe(prefix + ".mlp", config, layout);
    } else {
      AddFfn(prefix + ".mlp", config.hidden_size, config.intermediate_size, -1, layout);
    }
  }
  layout.push_back({"model.norm.weight", {config.hidden_size}});
  if (!config.tie_word_embeddings) {
    layout.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  }
  return layout;
}

}  // namespace shoal
