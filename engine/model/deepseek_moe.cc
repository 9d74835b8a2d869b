#include "engine/model/deepseek_moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace shoal {
namespace {

/// Base of the rotation at `position`. Dynamic scaling stretches it once the sequence is longer
/// than the trained context; the length is taken as position + 1, so a token's rotation depends on
/// its position alone and not on how its prompt was cut into steps.
double RopeBase(const ModelConfig& config, int64_t position) {
  const int64_t length = position + 1;
  if (config.rope_scaling.type != RopeScaling::Type::kDynamic ||
      length <= config.max_position_embeddings) {
    return config.rope_theta;
  }
  const double factor = config.rope_scaling.factor;
  const double dim = config.head_dim();
  const double stretch =
      factor * static_cast<double>(length) / static_cast<double>(config.max_position_embeddings) -
      (factor - 1);
  return config.rope_theta * std::pow(stretch, dim / (dim - 2));
}

/// Cosine and sine of positions [first, first + count) and every pair, [count, head_dim / 2, 2].
/// Frequencies and angles are float32, as in the published model.
std::vector<float> RopeRows(const ModelConfig& config, int64_t first, int64_t count) {
  const int half = config.head_dim() / 2;
  const float divisor = config.rope_scaling.type == RopeScaling::Type::kLinear
                            ? static_cast<float>(config.rope_scaling.factor)
                            : 1.0f;
  std::vector<float> rows(static_cast<size_t>(count) * half * 2);
  size_t next = 0;
  for (int64_t position = first; position < first + count; ++position) {
    const double base = RopeBase(config, position);
    for (int i = 0; i < half; ++i) {
      const auto frequency = static_cast<float>(std::pow(base, -2.0 * i / config.head_dim()));
      const float angle = static_cast<float>(position) / divisor * frequency;
      rows[next++] = static_cast<float>(std::cos(static_cast<double>(angle)));
      rows[next++] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  return rows;
}

}  // namespace

DeepseekMoe::DeepseekMoe(const ModelConfig& config, ModelWeights weights, Backend* backend)
    : config_(config), weights_(std::move(weights)), backend_(backend) {}

absl::StatusOr<std::unique_ptr<DeepseekMoe>> DeepseekMoe::Create(const ModelConfig& config,
                                                                 ModelWeights weights, DType dtype,
                                                                 const Limits& limits,
                                                                 Backend* backend) {
  std::unique_ptr<DeepseekMoe> model(new DeepseekMoe(config, std::move(weights), backend));
  RETURN_IF_ERROR(model->MakeRopeTable(limits.max_positions));
  RETURN_IF_ERROR(model->AllocateActivations(dtype, limits));
  return model;
}

/// In pieces, so that the host needs little memory beside the device's.
absl::Status DeepseekMoe::MakeRopeTable(int64_t max_positions) {
  constexpr int64_t kPositions = 4096;
  Device& device = *backend_->device;
  ASSIGN_OR_RETURN(rope_table_,
                   device.Allocate(DType::kFloat32, {max_positions, config_.head_dim() / 2, 2}));
  for (int64_t first = 0; first < max_positions; first += kPositions) {
    const int64_t count = std::min(kPositions, max_positions - first);
    const std::vector<float> rows = RopeRows(config_, first, count);
    device.CopyFromHost(rows.data(), rope_table_.Rows(first, count));
    RETURN_IF_ERROR(device.Synchronize());
  }
  return absl::OkStatus();
}

absl::Status DeepseekMoe::AllocateActivations(DType dtype, const Limits& limits) {
  const AttentionShape heads = config_.attention_shape();
  const int64_t tokens = limits.max_tokens;
  const int64_t rows = limits.max_logits_rows;
  const int64_t hidden = config_.hidden_size;
  const int64_t vocab = limits.vocab_limit > 0 ? limits.vocab_limit : config_.vocab_size;
  const int64_t qkv_width = (heads.num_heads + 2L * heads.num_kv_heads) * heads.head_dim;
  Device& device = *backend_->device;
  Activations& a = activations_;
  ASSIGN_OR_RETURN(a.residual, device.Allocate(dtype, {tokens, hidden}));
  ASSIGN_OR_RETURN(a.normed, device.Allocate(dtype, {tokens, hidden}));
  ASSIGN_OR_RETURN(a.qkv, device.Allocate(dtype, {tokens, qkv_width}));
  ASSIGN_OR_RETURN(a.attention,
                   device.Allocate(dtype, {tokens, heads.num_heads * int64_t{heads.head_dim}}));
  ASSIGN_OR_RETURN(a.delta, device.Allocate(dtype, {tokens, hidden}));
  RETURN_IF_ERROR(AllocateExpertActivations(dtype, tokens));
  ASSIGN_OR_RETURN(a.logits_hidden, device.Allocate(dtype, {rows, hidden}));
  ASSIGN_OR_RETURN(a.logits_normed, device.Allocate(dtype, {rows, hidden}));
  ASSIGN_OR_RETURN(a.logits, device.Allocate(DType::kFloat32, {rows, vocab}));
  return absl::OkStatus();
}

absl::Status DeepseekMoe::AllocateExpertActivations(DType dtype, int64_t max_tokens) {
  if (config_.n_routed_experts == 0) return absl::OkStatus();
  const int64_t hidden = config_.hidden_size;
  const int64_t top_k = config_.num_experts_per_tok;
  Device& device = *backend_->device;
  Activations& a = activations_;
  ASSIGN_OR_RETURN(a.expert_ids, device.Allocate(DType::kInt32, {max_tokens, top_k}));
  ASSIGN_OR_RETURN(a.expert_weights, device.Allocate(DType::kFloat32, {max_tokens, top_k}));
  ASSIGN_OR_RETURN(a.expert_rows, device.Allocate(dtype, {max_tokens, top_k, hidden}));
  ASSIGN_OR_RETURN(a.shared, device.Allocate(dtype, {max_tokens, hidden}));
  if (backend_->communicator->size() == 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(a.places, device.Allocate(DType::kInt32, {max_tokens, top_k}));
  ASSIGN_OR_RETURN(a.gathered_normed, device.Allocate(dtype, {max_tokens, hidden}));
  ASSIGN_OR_RETURN(a.gathered_places, device.Allocate(DType::kInt32, {max_tokens, top_k}));
  ASSIGN_OR_RETURN(a.gathered_rows, device.Allocate(dtype, {max_tokens, top_k, hidden}));
  return absl::OkStatus();
}

void DeepseekMoe::Forward(const ForwardBatch& batch, std::span<const Tensor> kv_layers) {
  num_tokens_ = batch.token_ids.shape[0];
  rank_tokens_ = batch.rank_tokens;
  const int num_ranks = backend_->communicator->size();
  SHOAL_CHECK(num_ranks == 1 || std::ssize(rank_tokens_) == num_ranks,
              "tokens of {} ranks, of which there are {}", rank_tokens_.size(), num_ranks);
  Ops& ops = *backend_->ops;
  const Tensor residual = activations_.residual.Rows(0, num_tokens_);
  const Tensor normed = activations_.normed.Rows(0, num_tokens_);
  const Tensor delta = activations_.delta.Rows(0, num_tokens_);

  ops.Embed(batch.token_ids, weights_.embedding, residual);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    ops.AddRmsNorm({}, residual, layer.input_norm, config_.rms_norm_eps, normed);
    Attention(layer, batch, kv_layers[i]);
    ops.AddRmsNorm(delta, residual, layer.post_attention_norm, config_.rms_norm_eps, normed);
    FeedForward(layer);
  }
}

void DeepseekMoe::WarmUp() {
  num_tokens_ = activations_.residual.shape[0];
  rank_tokens_ = {};
  Ops& ops = *backend_->ops;
  const auto warm_up = [&](bool routed) {
    const auto found = std::ranges::find(weights_.layers, routed, [](const LayerWeights& weights) {
      return !weights.router.empty();
    });
    if (found == weights_.layers.end()) return;
    LayerWeights layer = *found;
    layer.experts.first_expert = 0;  // zeros go to the first experts: they shall be local
    ops.Linear(activations_.normed, layer.qkv, layer.qkv_bias, activations_.qkv);
    ops.Linear(activations_.attention, layer.o, layer.o_bias, activations_.delta);
    FeedForward(layer);
  };
  warm_up(false);
  warm_up(true);
}

/// normed -> delta: causal self-attention (model spec 2.4 to 2.6).
void DeepseekMoe::Attention(const LayerWeights& layer, const ForwardBatch& batch,
                            const Tensor& kv) {
  Ops& ops = *backend_->ops;
  const AttentionShape shape = config_.attention_shape();
  const Tensor qkv = activations_.qkv.Rows(0, num_tokens_);
  const Tensor attention = activations_.attention.Rows(0, num_tokens_);
  ops.Linear(activations_.normed.Rows(0, num_tokens_), layer.qkv, layer.qkv_bias, qkv);
  ops.RopeAndWriteKv(qkv, rope_table_, batch.attention, shape, kv);
  ops.PagedAttention(qkv, kv, batch.attention, shape, attention);
  ops.Linear(attention, layer.o, layer.o_bias, activations_.delta.Rows(0, num_tokens_));
}

/// normed -> added to residual: a dense network or experts.
void DeepseekMoe::FeedForward(const LayerWeights& layer) {
  if (!layer.router.empty()) return MoeLayer(layer);
  const Tensor delta = activations_.delta.Rows(0, num_tokens_);
  backend_->ops->DenseFfn(activations_.normed.Rows(0, num_tokens_), layer.dense, delta);
  backend_->ops->Combine({}, {}, delta, activations_.residual.Rows(0, num_tokens_));
}

/// normed -> added to residual: routed and shared experts (arXiv 2401.06066, equations 9 to 11).
void DeepseekMoe::MoeLayer(const LayerWeights& layer) {
  Ops& ops = *backend_->ops;
  const Tensor normed = activations_.normed.Rows(0, num_tokens_);
  const Tensor rows = activations_.expert_rows.Rows(0, num_tokens_);
  const Routing routing = {activations_.expert_ids.Rows(0, num_tokens_),
                           activations_.expert_weights.Rows(0, num_tokens_)};
  ops.RouteTopK(normed, layer.router, config_.norm_topk_prob, routing);
  RoutedExperts(layer.experts, routing.expert_ids, rows);
  Tensor shared;
  if (!layer.shared.empty()) {
    shared = activations_.shared.Rows(0, num_tokens_);
    ops.DenseFfn(normed, layer.shared, shared);
  }
  ops.Combine(rows, routing, shared, activations_.residual.Rows(0, num_tokens_));
}

/// rows[t, k] = expert expert_ids[t, k] of normed[t], wherever that expert is: every rank gets the
/// tokens of all, computes its experts, and sends their rows home.
void DeepseekMoe::RoutedExperts(const LocalExperts& experts, const Tensor& expert_ids,
                                const Tensor& rows) {
  Ops& ops = *backend_->ops;
  const Tensor normed = activations_.normed.Rows(0, num_tokens_);
  if (rank_tokens_.size() <= 1) return ops.ExpertFfn(normed, expert_ids, experts, rows);

  Communicator& ranks = *backend_->communicator;
  const int64_t num_gathered =
      std::accumulate(rank_tokens_.begin(), rank_tokens_.end(), int64_t{0});
  const Tensor places = activations_.places.Rows(0, num_tokens_);
  const Tensor all_normed = activations_.gathered_normed.Rows(0, num_gathered);
  const Tensor all_places = activations_.gathered_places.Rows(0, num_gathered);
  const Tensor all_rows = activations_.gathered_rows.Rows(0, num_gathered);
  ops.MapIds(expert_ids, weights_.expert_places, places);
  ranks.AllGather(normed, rank_tokens_, all_normed);
  ranks.AllGather(places, rank_tokens_, all_places);
  ops.ExpertFfn(all_normed, all_places, experts, all_rows);
  ranks.ReturnRows(all_rows, places, weights_.experts_per_rank, rank_tokens_, rows);
}

Tensor DeepseekMoe::Logits(const Tensor& row_ids) {
  Ops& ops = *backend_->ops;
  const int64_t rows = row_ids.shape[0];
  const Tensor hidden = activations_.logits_hidden.Rows(0, rows);
  const Tensor normed = activations_.logits_normed.Rows(0, rows);
  const Tensor logits = activations_.logits.Rows(0, rows);
  ops.GatherRows(activations_.residual.Rows(0, num_tokens_), row_ids, hidden);
  ops.AddRmsNorm({}, hidden, weights_.norm, config_.rms_norm_eps, normed);
  ops.Linear(normed, weights_.lm_head, {}, logits);
  return logits;
}

}  // namespace shoal
