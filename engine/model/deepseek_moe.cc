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

std::vector<DeepseekMoe::ActivationSpec> DeepseekMoe::ActivationSpecs(const ModelConfig& config,
                                                                      DType dtype,
                                                                      const Limits& limits,
                                                                      int num_ranks) {
  using A = Activations;
  const AttentionShape heads = config.attention_shape();
  const int64_t tokens = limits.max_tokens;
  const int64_t rows = limits.max_logits_rows;
  const int64_t hidden = config.hidden_size;
  const int64_t routes = config.num_routes();
  const int64_t vocab = limits.vocab_limit > 0 ? limits.vocab_limit : config.vocab_size;
  const int64_t qkv_width = (heads.num_heads + 2L * heads.num_kv_heads) * heads.head_dim;
  std::vector<ActivationSpec> specs = {
      {&A::residual, dtype, {tokens, hidden}},
      {&A::normed, dtype, {tokens, hidden}},
      {&A::qkv, dtype, {tokens, qkv_width}},
      {&A::attention, dtype, {tokens, heads.num_heads * int64_t{heads.head_dim}}},
      {&A::delta, dtype, {tokens, hidden}},
      {&A::logits_normed, dtype, {rows, hidden}},
      {&A::logits, DType::kFloat32, {rows, vocab}}};
  if (config.n_routed_experts == 0) return specs;
  specs.push_back({&A::expert_ids, DType::kInt32, {tokens, routes}});
  specs.push_back({&A::expert_weights, DType::kFloat32, {tokens, routes}});
  specs.push_back({&A::expert_rows, dtype, {tokens, routes, hidden}});
  if (num_ranks == 1) return specs;
  specs.push_back({&A::places, DType::kInt32, {tokens, routes}});
  specs.push_back({&A::gathered_normed, dtype, {tokens, hidden}});
  specs.push_back({&A::gathered_places, DType::kInt32, {tokens, routes}});
  specs.push_back({&A::gathered_rows, dtype, {tokens, routes, hidden}});
  return specs;
}

int64_t DeepseekMoe::DeviceBytes(const ModelConfig& config, DType dtype, const Limits& limits,
                                 int num_ranks) {
  const int64_t rope_elements = limits.max_positions * (config.head_dim() / 2) * 2;
  int64_t bytes = rope_elements * SizeOf(DType::kFloat32);
  for (const ActivationSpec& spec : ActivationSpecs(config, dtype, limits, num_ranks)) {
    bytes += Tensor(nullptr, spec.dtype, spec.shape).size_bytes();
  }
  return bytes;
}

absl::Status DeepseekMoe::AllocateActivations(DType dtype, const Limits& limits) {
  const int num_ranks = backend_->communicator->size();
  for (const ActivationSpec& spec : ActivationSpecs(config_, dtype, limits, num_ranks)) {
    ASSIGN_OR_RETURN(activations_.*spec.tensor, backend_->device->Allocate(spec.dtype, spec.shape));
  }
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

  ops.Embed(batch.token_ids, weights_.embedding, residual);
  ops.AddRmsNorm({}, residual, weights_.layers.front().input_norm, normed);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const bool is_last = i + 1 == weights_.layers.size();
    const Norm& next_norm = is_last ? weights_.norm : weights_.layers[i + 1].input_norm;
    Attention(layer, batch, kv_layers[i]);
    if (layer.router.weight.empty()) {
      DenseLayer(layer, next_norm);
    } else {
      MoeLayer(layer, batch.num_tokens, next_norm);
    }
  }
}

void DeepseekMoe::WarmUp() {
  num_tokens_ = activations_.residual.shape[0];
  rank_tokens_ = {};
  Ops& ops = *backend_->ops;
  const Activations& a = activations_;
  const auto find_layer = [&](bool routed) {
    return std::ranges::find(weights_.layers, routed, [](const LayerWeights& layer) {
      return !layer.router.weight.empty();
    });
  };
  const LayerWeights& any = weights_.layers.front();
  ops.Linear(a.normed, any.qkv, any.qkv_bias, a.qkv);
  ops.Linear(a.attention, any.o, any.o_bias, a.delta);
  if (const auto dense = find_layer(false); dense != weights_.layers.end()) {
    DenseLayer(*dense, weights_.norm);
  }
  if (const auto moe = find_layer(true); moe != weights_.layers.end()) {
    const Routing routing = StepRouting({});
    ops.AddRmsNormRoute(a.delta, a.residual, moe->post_attention_norm, moe->router, a.normed,
                        routing);
    ChooseLocalExperts(moe->experts);
    ops.ExpertFfn(a.normed, routing.expert_ids, moe->experts, a.expert_rows);
    ops.Combine(a.expert_rows, routing, a.residual, weights_.norm, a.normed);
  }
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

/// delta -> added to residual, and what one network makes of it too; normed for the next stage.
void DeepseekMoe::DenseLayer(const LayerWeights& layer, const Norm& next_norm) {
  Ops& ops = *backend_->ops;
  const Tensor residual = activations_.residual.Rows(0, num_tokens_);
  const Tensor normed = activations_.normed.Rows(0, num_tokens_);
  const Tensor delta = activations_.delta.Rows(0, num_tokens_);
  ops.AddRmsNorm(delta, residual, layer.post_attention_norm, normed);
  ops.DenseFfn(normed, layer.dense, delta);
  ops.AddRmsNorm(delta, residual, next_norm, normed);
}

/// The same with routed and shared experts (arXiv 2401.06066, equations 9 to 11).
void DeepseekMoe::MoeLayer(const LayerWeights& layer, const Tensor& num_tokens,
                           const Norm& next_norm) {
  Ops& ops = *backend_->ops;
  const Tensor residual = activations_.residual.Rows(0, num_tokens_);
  const Tensor normed = activations_.normed.Rows(0, num_tokens_);
  const Tensor delta = activations_.delta.Rows(0, num_tokens_);
  const Tensor rows = activations_.expert_rows.Rows(0, num_tokens_);
  const Routing routing = StepRouting(num_tokens);
  ops.AddRmsNormRoute(delta, residual, layer.post_attention_norm, layer.router, normed, routing);
  Experts(layer.experts, routing.expert_ids, rows);
  ops.Combine(rows, routing, residual, next_norm, normed);
}

/// rows[t, k] = expert expert_ids[t, k] of normed[t], wherever that expert is: every rank gets the
/// tokens of all, computes its experts, and sends their rows home.
void DeepseekMoe::Experts(const LocalExperts& experts, const Tensor& expert_ids,
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

Routing DeepseekMoe::StepRouting(const Tensor& num_tokens) const {
  return {.expert_ids = activations_.expert_ids.Rows(0, num_tokens_),
          .weights = activations_.expert_weights.Rows(0, num_tokens_),
          .num_tokens = num_tokens};
}

/// Sends each token of the step to as many of this rank's experts as one token can go to.
void DeepseekMoe::ChooseLocalExperts(const LocalExperts& experts) {
  const Tensor expert_ids = activations_.expert_ids.Rows(0, num_tokens_);
  const int64_t routes = config_.num_routes();
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens_ * routes), -1);
  for (int64_t i = 0; i < std::ssize(ids); ++i) {
    if (i % routes >= experts.weights.num_experts) continue;
    ids[static_cast<size_t>(i)] = static_cast<int32_t>(experts.first_expert + i % routes);
  }
  backend_->device->CopyFromHost(ids.data(), expert_ids);
}

Tensor DeepseekMoe::Logits(const Tensor& row_ids) {
  Ops& ops = *backend_->ops;
  const int64_t rows = row_ids.shape[0];
  const Tensor normed = activations_.logits_normed.Rows(0, rows);
  const Tensor logits = activations_.logits.Rows(0, rows);
  ops.GatherRows(activations_.normed, row_ids, normed);
  ops.Linear(normed, weights_.lm_head, {}, logits);
  return logits;
}

}  // namespace shoal
