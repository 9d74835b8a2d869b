// Ops: the stages of the forward pass that every backend implements. The plain loops in kernels/cpu
// are the reference; every other implementation is held against them.
#pragma once

#include <cstdint>

#include "kernels/records.h"
#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace shoal {

/// How the tokens of a step lie in the paged KV cache. Device tensors, int32. Tokens after those of
/// the last sequence are padding: they have some position and slot -1, and nobody reads what
/// becomes of them. A sequence may have no token.
struct AttentionMeta {
  Tensor positions;     // [num_tokens] index of the token in its sequence
  Tensor slot_mapping;  // [num_tokens] block * block_size + offset: where its key and value go
  Tensor cu_seqlens;  // [num_sequences + 1] first token of each sequence, then the end of the last
  Tensor block_tables;  // [num_sequences, max_blocks] blocks of each sequence, in order
  // Bounds that the host knows: no sequence has more tokens in this step, or up to its last one.
  int64_t max_query_len = 0;
  int64_t max_context_len = 0;
};

/// Heads of one attention layer.
struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads =
      0;             // divides num_heads; each is shared by num_heads / num_kv_heads query heads
  int head_dim = 0;  // even
};

/// RMSNorm, arXiv 1910.07467.
struct Norm {
  Tensor weight;  // [hidden_size]
  float epsilon = 0;
};

/// The gate of one layer (DeepSeekMoE, arXiv 2401.06066). Shared experts are experts that every
/// token goes to: they are numbered after the routed ones.
struct Router {
  Weight weight;  // [num_experts, hidden_size]: the routed experts
  bool renormalize =
      false;  // divide the routed weights by their sum + 1e-20, unless it is only one
  int num_shared = 0;
};

/// Which experts each token goes to. Device tensors. num_routes is the top_k of the routed experts,
/// by falling weight, ties to the lower id, then the shared ones, of weight 1.
struct Routing {
  Tensor expert_ids;  // [num_tokens, num_routes] int32; -1 for a padding token
  Tensor weights;     // [num_tokens, num_routes] float32
  Tensor num_tokens;  // [1] int32: the tokens after these are padding; empty: none is
};

/// Experts that live on one rank: local expert i of `weights` has the number `first_expert + i`.
struct LocalExperts {
  FfnWeights weights;
  int first_expert = 0;
};

/// Sizes of a model, by their names in config.json; 0 where a model has none of it.
struct ModelSizes {
  DType dtype = DType::kFloat32;  // of weights, activations and KV cache
  int64_t vocab_size = 0;         // tokens to choose among
  int64_t hidden_size = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;      // width of a dense layer
  int64_t moe_intermediate_size = 0;  // width of one expert
  int64_t n_routed_experts = 0;
  int64_t num_routes = 0;  // num_experts_per_tok + n_shared_experts
};

/// All that Ops::Sample reads beside the logits. Device tensors.
struct SamplingInputs {
  Tensor rows;     // [num_rows * sizeof(SamplingRow)] bytes
  Tensor history;  // [num_slots, max_model_len] int32: the tokens of each running sequence
  Tensor biases;   // [num_biases * sizeof(LogitBias)] bytes, may be empty
  Tensor masks;    // [num_masks, ceil(vocab / 32)] int32, bit t % 32 of word t / 32 allows token t;
                   // may be empty
};

/// Kernels of one rank. Every method only enqueues: it neither allocates nor waits, so a sequence
/// of calls can be captured in a graph. Activations are float32 or bfloat16, alike within one call;
/// sums are float32, in an order that depends on neither the number of rows nor their neighbours: a
/// row's result is the same in every batch. Shapes are invariants (CHECK). Thread: the rank's
/// worker.
class Ops {
 public:
  virtual ~Ops() = default;

  /// OK if a model of such sizes can be computed. INVALID_ARGUMENT names the first that is not as
  /// it must be, its value and what is expected.
  virtual absl::Status CheckModel(const ModelSizes& sizes) const = 0;

  /// out[t] = table[token_ids[t]], or zeros for a negative id. token_ids [num_tokens] int32; out
  /// [num_tokens, hidden_size].
  virtual void Embed(const Tensor& token_ids, const Weight& table, const Tensor& out) = 0;

  /// residual += delta (unless delta is empty), rounded to the storage type; then
  /// out = round(residual * rsqrt(mean(residual^2) + epsilon)) * weight.
  /// All [num_tokens, hidden_size].
  virtual void AddRmsNorm(const Tensor& delta, const Tensor& residual, const Norm& norm,
                          const Tensor& out) = 0;

  /// AddRmsNorm, then softmax over the router's logits out weight^T (float32, not rounded) and the
  /// top_k = num_routes - num_shared most likely experts.
  virtual void AddRmsNormRoute(const Tensor& delta, const Tensor& residual, const Norm& norm,
                               const Router& router, const Tensor& out, const Routing& routing) = 0;

  /// out = x weight^T + bias. x [num_tokens, in_features]; out [num_tokens, n], n <= out_features
  /// (the weight's first n rows), of x's dtype or float32; bias [n] of x's dtype, or empty.
  virtual void Linear(const Tensor& x, const Weight& weight, const Tensor& bias,
                      const Tensor& out) = 0;

  /// Rotates queries and keys in place by their position (RoPE, arXiv 2104.09864, halves (i, i +
  /// d/2)) and writes keys and values to their cache slots. qkv [num_tokens, (num_heads + 2
  /// num_kv_heads) * head_dim]; rope_table [max_positions, head_dim/2, 2] float32 cosine and sine;
  /// kv [num_blocks, 2 (K, V), num_kv_heads, block_size, head_dim].
  virtual void RopeAndWriteKv(const Tensor& qkv, const Tensor& rope_table,
                              const AttentionMeta& meta, const AttentionShape& shape,
                              const Tensor& kv) = 0;

  /// Causal attention of each query over its sequence's cached keys, scores scaled by
  /// 1/sqrt(head_dim), softmax in float32. Reads the queries of qkv; out [num_tokens, num_heads *
  /// head_dim].
  virtual void PagedAttention(const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
                              const AttentionShape& shape, const Tensor& out) = 0;

  /// out = down(silu(gate(x)) * up(x)) by the one expert of `weights`. x, out [num_tokens,
  /// hidden_size].
  virtual void DenseFfn(const Tensor& x, const FfnWeights& weights, const Tensor& out) = 0;

  /// Runs each token through those of its experts that are local; rows of others stay as they are.
  /// x [num_tokens, hidden_size]; expert_ids [num_tokens, num_routes] int32, negative: none; rows
  /// [num_tokens, num_routes, hidden_size], not yet weighted.
  virtual void ExpertFfn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                         const Tensor& rows) = 0;

  /// residual += sum over k, in order, of weights[t, k] * rows[t, k], rounded once; then out as
  /// AddRmsNorm makes it. rows [num_tokens, num_routes, hidden_size]; residual, out [num_tokens,
  /// hidden_size]. Padding tokens stay as they are.
  virtual void Combine(const Tensor& rows, const Routing& routing, const Tensor& residual,
                       const Norm& norm, const Tensor& out) = 0;

  /// out[i] = x[row_ids[i]]. x [num_tokens, hidden_size]; row_ids [num_rows] int32.
  virtual void GatherRows(const Tensor& x, const Tensor& row_ids, const Tensor& out) = 0;

  /// out[i] = table[ids[i]], for each element; a negative id stays as it is. table [num_entries]
  /// int32; ids, out of one shape, int32; ids below num_entries.
  virtual void MapIds(const Tensor& ids, const Tensor& table, const Tensor& out) = 0;

  /// Copies whole blocks of one layer, all at once: no block is both source and target. kv
  /// [num_blocks, 2, num_kv_heads, block_size, head_dim]; copies [num_copies * sizeof(BlockCopy)]
  /// bytes.
  virtual void CopyBlocks(const Tensor& kv, const Tensor& copies) = 0;

  /// Brings tokens and history together: where token_ids[t] >= 0, history[slots[t], positions[t]]
  /// becomes it; where it is negative, it becomes that entry of the history, or 0 if that too is
  /// negative. All reads see what earlier calls wrote; within one call no entry is both written and
  /// read. token_ids, slots, positions [num_tokens] int32; history [num_slots, max_model_len]
  /// int32. Where slots[t] is negative, t is padding and stays as it is.
  virtual void ResolveTokens(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                             const Tensor& history) = 0;

  /// Chooses one token for each row of logits [num_rows, vocab] float32, with its logprob if
  /// wanted. out: [num_rows * sizeof(SampledRow)] bytes. Random numbers: Philox4x32-10 (Salmon et
  /// al. 2011), key = seed, counter = position. No row reads a history entry that another one of
  /// the call records. What is recorded is the row's token_id, also a negative one.
  virtual void Sample(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) = 0;

  /// out[i] = a random number, nearly normally distributed with mean 0 and deviation `stddev`, that
  /// depends on `seed` and i alone: the same bits on every backend (kernels/normal.h). float32 or
  /// bfloat16, of any shape.
  virtual void FillNormal(const Tensor& out, uint64_t seed, float stddev) = 0;
};

}  // namespace shoal
