// Ops: the stages of the forward pass that every backend implements. The plain loops in kernels/cpu
// are the reference; every other implementation is held against them.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace shoal {

/// How the tokens of a step lie in the paged KV cache. Device tensors, int32.
struct AttentionMeta {
  Tensor positions;     // [num_tokens] index of the token in its sequence
  Tensor slot_mapping;  // [num_tokens] block * block_size + offset: where its key and value go
  Tensor cu_seqlens;    // [num_sequences + 1] first token of each sequence, then num_tokens
  Tensor block_tables;  // [num_sequences, max_blocks] blocks of each sequence, in order
};

/// Heads of one attention layer.
struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads =
      0;             // divides num_heads; each is shared by num_heads / num_kv_heads query heads
  int head_dim = 0;  // even
};

/// Which experts each token goes to. Device tensors.
struct Routing {
  Tensor expert_ids;  // [num_tokens, top_k] int32, by falling weight; ties to the lower id
  Tensor weights;     // [num_tokens, top_k] float32
};

/// Routed experts that live on one rank: local expert i of `weights` has the number `first_expert +
/// i`.
struct LocalExperts {
  FfnWeights weights;
  int first_expert = 0;
};

/// From block `source` to block `target` of the KV cache. Plain data, copied to the device.
struct BlockCopy {
  int32_t source = 0;
  int32_t target = 0;
};

/// Most likely alternatives returned with a token (OpenAI's limit).
inline constexpr int kMaxTopLogprobs = 20;

/// Added to a token's logit. Plain data, copied to the device.
struct LogitBias {
  int32_t token_id = 0;
  float bias = 0;  // -infinity: the token is never chosen
};

/// One row of Ops::Sample: how to choose a token from its logits. Plain data, copied to the device.
/// First the logits are edited: mask, biases, then penalties over the tokens of the history (a
/// positive logit is divided by repetition_penalty, another multiplied, if the token is anywhere in
/// it; frequency_penalty times its number of times and presence_penalty once are subtracted, if it
/// was generated). Then they are scaled by the temperature, and the filters apply in the order
/// min_p, top_k, top_p, typical_p.
struct SamplingRow {
  float temperature = 0;  // 0: greedy, ties to the lower id
  int32_t top_k = 0;      // keep the k most likely; 0: all
  float top_p = 1;        // then the smallest set of most likely tokens whose probability reaches p
  float min_p = 0;        // first drop tokens less likely than min_p times the most likely
  // Last, of the rest: the smallest set of the tokens whose information is nearest to the entropy
  // and whose probability reaches typical_p (arXiv 2202.00666). 1: all.
  float typical_p = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;   // > 0
  int32_t forced_token = -1;      // >= 0: no choice, this token (its logprob is wanted)
  int32_t top_logprobs = -1;      // -1: no logprobs at all; n: this many alternatives
  int32_t slot = 0;               // the sequence's row of the history
  int32_t num_prompt_tokens = 0;  // of the history; those from there to `position` were generated
  int32_t first_bias = 0;         // of SamplingInputs::biases
  int32_t num_biases = 0;
  int32_t mask = -1;     // row of SamplingInputs::masks; -1: every token is allowed
  int32_t recorded = 0;  // 1: history[slot, position] = the chosen token, for the next step
  uint64_t seed = 0;     // key of the counter-based generator
  int64_t position = 0;  // its counter: index of the chosen token in its sequence
};

/// All that Ops::Sample reads beside the logits. Device tensors.
struct SamplingInputs {
  Tensor rows;     // [num_rows * sizeof(SamplingRow)] bytes
  Tensor history;  // [num_slots, max_model_len] int32: the tokens of each running sequence
  Tensor biases;   // [num_biases * sizeof(LogitBias)] bytes, may be empty
  Tensor masks;    // [num_masks, ceil(vocab / 32)] int32, bit t % 32 of word t / 32 allows token t;
                   // may be empty
};

/// What Ops::Sample gives for one row. Plain data, copied from the device.
struct SampledRow {
  static constexpr int32_t kNotFinite = -1;    // the logits held a NaN or +inf
  static constexpr int32_t kNoneAllowed = -2;  // mask and biases leave no token

  int32_t token_id = kNotFinite;  // or one of the above: nothing was chosen
  float logprob = 0;              // log softmax of the logits before any edit, at token_id
  // By falling logprob, ties to the lower id; -1 after the last one: that of row.top_logprobs, or
  // of the vocabulary.
  std::array<int32_t, kMaxTopLogprobs> top_ids = NoTokens();
  std::array<float, kMaxTopLogprobs> top_logprobs = {};

  static constexpr std::array<int32_t, kMaxTopLogprobs> NoTokens() {
    std::array<int32_t, kMaxTopLogprobs> ids;
    ids.fill(-1);
    return ids;
  }
};

/// Kernels of one rank. Every method only enqueues: it neither allocates nor waits, so a sequence
/// of calls can be captured in a graph. Activations are float32 or bfloat16, alike within one call;
/// sums are float32, in an order that depends on neither the number of rows nor their neighbours: a
/// row's result is the same in every batch. Shapes are invariants (CHECK). Thread: the rank's
/// worker.
class Ops {
 public:
  virtual ~Ops() = default;

  /// out[t] = table[token_ids[t]]. token_ids [num_tokens] int32; out [num_tokens, hidden_size].
  virtual void Embed(const Tensor& token_ids, const Weight& table, const Tensor& out) = 0;

  /// residual += delta (unless delta is empty), rounded to the storage type; then
  /// out = round(residual * rsqrt(mean(residual^2) + epsilon)) * weight.
  /// All [num_tokens, hidden_size]; weight [hidden_size]. RMSNorm, arXiv 1910.07467.
  virtual void AddRmsNorm(const Tensor& delta, const Tensor& residual, const Tensor& weight,
                          float epsilon, const Tensor& out) = 0;

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

  /// Softmax over the router's logits x router^T (float32, not rounded), then the top_k most
  /// likely, top_k being routing's second dimension. renormalize: divide the weights by their sum +
  /// 1e-20, unless top_k is 1. x [num_tokens, hidden_size]; router [num_experts, hidden_size].
  /// DeepSeekMoE, arXiv 2401.06066.
  virtual void RouteTopK(const Tensor& x, const Weight& router, bool renormalize,
                         const Routing& routing) = 0;

  /// Runs each token through those of its routed experts that are local; rows of others stay as
  /// they are. x [num_tokens, hidden_size]; expert_ids [num_tokens, top_k] int32; rows [num_tokens,
  /// top_k, hidden_size], not yet weighted.
  virtual void ExpertFfn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                         const Tensor& rows) = 0;

  /// residual += sum over k, in order, of weights[t, k] * rows[t, k] (none if rows is empty), plus
  /// shared[t] unless shared is empty; one rounding. rows [num_tokens, top_k, hidden_size]; shared,
  /// residual [num_tokens, hidden_size].
  virtual void Combine(const Tensor& rows, const Routing& routing, const Tensor& shared,
                       const Tensor& residual) = 0;

  /// out[i] = x[row_ids[i]]. x [num_tokens, hidden_size]; row_ids [num_rows] int32.
  virtual void GatherRows(const Tensor& x, const Tensor& row_ids, const Tensor& out) = 0;

  /// out[i] = table[ids[i]], for each element. table [num_entries] int32; ids, out of one shape,
  /// int32; ids in [0, num_entries).
  virtual void MapIds(const Tensor& ids, const Tensor& table, const Tensor& out) = 0;

  /// Copies whole blocks of one layer, all at once: no block is both source and target. kv
  /// [num_blocks, 2, num_kv_heads, block_size, head_dim]; copies [num_copies * sizeof(BlockCopy)]
  /// bytes.
  virtual void CopyBlocks(const Tensor& kv, const Tensor& copies) = 0;

  /// Brings tokens and history together: where token_ids[t] >= 0, history[slots[t], positions[t]]
  /// becomes it; where it is negative, it becomes that entry of the history, or 0 if that too is
  /// negative. All reads see what earlier calls wrote; within one call no entry is both written and
  /// read. token_ids, slots, positions [num_tokens] int32; history [num_slots, max_model_len]
  /// int32.
  virtual void ResolveTokens(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                             const Tensor& history) = 0;

  /// Chooses one token for each row of logits [num_rows, vocab] float32, with its logprob if
  /// wanted. out: [num_rows * sizeof(SampledRow)] bytes. Random numbers: Philox4x32-10 (Salmon et
  /// al. 2011), key = seed, counter = position. No row reads a history entry that another one of
  /// the call records. What is recorded is the row's token_id, also a negative one.
  virtual void Sample(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) = 0;
};

}  // namespace shoal
