// DeepseekMoe: the forward pass of the DeepSeekMoE architecture (arXiv 2401.06066), for every
// backend.
#pragma once

#include <memory>
#include <vector>

#include "engine/model/forward_batch.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace shoal {

/// The model on one rank: weights, rope table and the activations of one step. Thread: worker.
class DeepseekMoe {
 public:
  /// Limits that fix the size of every activation.
  struct Limits {
    int64_t max_tokens = 0;       // tokens of one step, of all ranks together
    int64_t max_positions = 0;    // tokens of one sequence
    int64_t max_logits_rows = 0;  // rows of one Logits() call
    int64_t vocab_limit = 0;      // logits are computed for token ids below this; 0: vocab_size
  };

  /// Bytes that a model takes on the device of one of `num_ranks`, beside its weights.
  static int64_t DeviceBytes(const ModelConfig& config, DType dtype, const Limits& limits,
                             int num_ranks);

  /// `backend` outlives the model. RESOURCE_EXHAUSTED if the activations do not fit the device.
  static absl::StatusOr<std::unique_ptr<DeepseekMoe>> Create(const ModelConfig& config,
                                                             ModelWeights weights, DType dtype,
                                                             const Limits& limits,
                                                             Backend* backend);

  /// Runs one layer of each kind on zeros, at the largest number of tokens, so that the ops have
  /// taken their working memory. Without attention, whose own does not grow with the batch, and
  /// without the other ranks, which need not be there yet.
  void WarmUp();

  /// Runs all layers over the batch and writes its keys and values to `kv_layers`, one tensor
  /// [num_blocks, 2, num_kv_heads, block_size, head_dim] per layer. The result stays in the model
  /// until the next call. All ranks call it together, each with its own batch; one without tokens
  /// still computes its experts for the others.
  void Forward(const ForwardBatch& batch, std::span<const Tensor> kv_layers);

  /// Logits of tokens of the last Forward(), be it a recorded one. row_ids [num_rows] int32; the
  /// result [num_rows, vocab_limit] float32 is overwritten by the next call.
  Tensor Logits(const Tensor& row_ids);

 private:
  /// Buffers of one step; each call uses their first rows.
  struct Activations {
    Tensor residual;        // [max_tokens, hidden_size]
    Tensor normed;          // [max_tokens, hidden_size] what the next stage reads
    Tensor qkv;             // [max_tokens, (num_heads + 2 num_kv_heads) * head_dim]
    Tensor attention;       // [max_tokens, num_heads * head_dim]
    Tensor delta;           // [max_tokens, hidden_size] output of attention or dense network
    Tensor expert_ids;      // [max_tokens, num_routes] int32
    Tensor expert_weights;  // [max_tokens, num_routes] float32
    Tensor expert_rows;     // [max_tokens, num_routes, hidden_size]
    // What Experts() exchanges, if there are several ranks.
    Tensor places;           // [max_tokens, num_routes] int32
    Tensor gathered_normed;  // [max_tokens, hidden_size]
    Tensor gathered_places;  // [max_tokens, num_routes] int32
    Tensor gathered_rows;    // [max_tokens, num_routes, hidden_size]
    Tensor logits_normed;    // [max_logits_rows, hidden_size]
    Tensor logits;           // [max_logits_rows, vocab_limit] float32
  };

  /// One of the buffers, before it is allocated.
  struct ActivationSpec {
    Tensor Activations::* tensor = nullptr;
    DType dtype = DType::kFloat32;
    std::vector<int64_t> shape;
  };

  DeepseekMoe(const ModelConfig& config, ModelWeights weights, Backend* backend);
  static std::vector<ActivationSpec> ActivationSpecs(const ModelConfig& config, DType dtype,
                                                     const Limits& limits, int num_ranks);
  absl::Status MakeRopeTable(int64_t max_positions);
  absl::Status AllocateActivations(DType dtype, const Limits& limits);
  void Attention(const LayerWeights& layer, const ForwardBatch& batch, const Tensor& kv);
  void DenseLayer(const LayerWeights& layer, const Norm& next_norm);
  void MoeLayer(const LayerWeights& layer, const Tensor& num_tokens, const Norm& next_norm);
  void Experts(const LocalExperts& experts, const Tensor& expert_ids, const Tensor& rows);
  Routing StepRouting(const Tensor& num_tokens) const;
  void ChooseLocalExperts(const LocalExperts& experts);

  const ModelConfig config_;
  ModelWeights weights_;
  Backend* const backend_;
  Tensor rope_table_;  // [max_positions, head_dim / 2, 2] float32
  Activations activations_;
  // Of the running Forward().
  int64_t num_tokens_ = 0;
  std::span<const int64_t> rank_tokens_;
};

}  // namespace shoal
