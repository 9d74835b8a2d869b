#include "engine/model/roofline.h"

#include <algorithm>
#include <cmath>

namespace shoal {
namespace {

/// Weights by who needs them.
struct Parameters {
  int64_t every_token = 0;  // all but those below
  int64_t expert = 0;       // of one routed expert
  int64_t lm_head = 0;
};

Parameters CountParameters(const ModelConfig& config) {
  const AttentionShape heads = config.attention_shape();
  const int64_t hidden = config.hidden_size;
  const int64_t attention =
      (2 * heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim * hidden;
  Parameters parameters = {.expert = 3 * hidden * config.moe_intermediate_size,
                           .lm_head = config.vocab_size * hidden};
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    parameters.every_token +=
        attention + (config.is_moe_layer(layer)
                         ? config.n_routed_experts * hidden + 3 * hidden * config.shared_width()
                         : 3 * hidden * config.intermediate_size);
  }
  return parameters;
}

int64_t NumMoeLayers(const ModelConfig& config) {
  int64_t count = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    count += config.is_moe_layer(layer) ? 1 : 0;
  }
  return count;
}

}  // namespace

double ExpectedExperts(const ModelConfig& config, int64_t num_tokens) {
  if (config.n_routed_experts == 0) return 0;
  const double experts = config.n_routed_experts;
  const double missed = 1 - config.num_experts_per_tok / experts;
  return static_cast<double>(NumMoeLayers(config)) * experts *
         (1 - std::pow(missed, static_cast<double>(num_tokens)));
}

ForwardWork DecodeWork(const ModelConfig& config, int64_t num_sequences, int64_t context_tokens) {
  return {.num_tokens = num_sequences,
          .num_logits_rows = num_sequences,
          .num_cached_tokens = context_tokens,
          .num_attended = context_tokens,
          .num_experts = ExpectedExperts(config, num_sequences)};
}

double ForwardBytes(const ModelConfig& config, DType dtype, const ForwardWork& work) {
  const Parameters parameters = CountParameters(config);
  const AttentionShape heads = config.attention_shape();
  const int64_t kv_per_token =
      int64_t{2} * heads.num_kv_heads * heads.head_dim * config.num_hidden_layers;
  const int64_t lm_head = work.num_logits_rows > 0 ? parameters.lm_head : 0;
  const double elements =
      static_cast<double>(parameters.every_token + lm_head) +
      work.num_experts * static_cast<double>(parameters.expert) +
      static_cast<double>(kv_per_token) * static_cast<double>(work.num_cached_tokens);
  return elements * static_cast<double>(SizeOf(dtype));
}

double ForwardFlops(const ModelConfig& config, const ForwardWork& work) {
  const Parameters parameters = CountParameters(config);
  const AttentionShape heads = config.attention_shape();
  const int64_t routed = config.num_experts_per_tok * NumMoeLayers(config) * parameters.expert;
  const int64_t per_pair = int64_t{2} * heads.num_heads * heads.head_dim * config.num_hidden_layers;
  return 2 * (static_cast<double>(parameters.every_token + routed) *
                  static_cast<double>(work.num_tokens) +
              static_cast<double>(parameters.lm_head) * static_cast<double>(work.num_logits_rows) +
              static_cast<double>(per_pair) * static_cast<double>(work.num_attended));
}

}  // namespace shoal
