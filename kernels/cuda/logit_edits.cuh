// Mask, biases and penalties of a row of logits. A block works on one row.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/sampling.h"
#include "kernels/cuda/token_selection.cuh"

namespace shoal::cuda {

/// How often the history has each token of a range of the vocabulary.
struct TokenUses {
  static constexpr int kTokens = 8192;

  int32_t count[kTokens];
  int32_t generated[kTokens];  // of them, after the prompt
};

__device__ __forceinline__ bool HasPenalties(const SamplingRow& row) {
  return row.repetition_penalty != 1 || row.frequency_penalty != 0 || row.presence_penalty != 0;
}

__device__ __forceinline__ bool HasEdits(const SamplingRow& row) {
  return row.mask >= 0 || row.num_biases > 0 || HasPenalties(row);
}

/// Keeps extreme biases and penalties from making an infinity that would drown the other logits.
__device__ __forceinline__ float Finite(float logit) {
  return fminf(fmaxf(logit, -FLT_MAX), FLT_MAX);
}

/// edited = the logits that the mask allows, -infinity for the others; mask null: all. edited is
/// aligned to 16 bytes and has room for a multiple of 4.
__device__ __forceinline__ void MaskLogits(const LogitRow& logits, const uint32_t* mask,
                                           float* edited) {
  ForEachTile(logits, [&](int first, const float(&values)[kLaneTokens]) {
#pragma unroll
    for (int i = 0; i < kLaneTokens; i += 4) {
      const int id = TokenId(first, i);
      if (id >= logits.vocab) continue;
      const uint32_t allowed = mask == nullptr ? 15 : mask[id / 32] >> id % 32;
      const auto masked = [&](int at) { return allowed >> at & 1 ? values[i + at] : -INFINITY; };
      *reinterpret_cast<float4*>(edited + id) =
          make_float4(masked(0), masked(1), masked(2), masked(3));
    }
  });
}

/// The thread that has the first bias of a token adds all of that token, in order.
__device__ __forceinline__ void AddBiases(const LogitBias* biases, int num_biases, float* edited) {
  for (int i = ThreadIndex(); i < num_biases; i += NumThreads()) {
    const int id = biases[i].token_id;
    bool first = true;
    for (int j = 0; j < i; ++j) first &= biases[j].token_id != id;
    if (!first) continue;
    float logit = edited[id];
    for (int j = i; j < num_biases; ++j) {
      if (biases[j].token_id != id) continue;
      if (biases[j].bias == -INFINITY) logit = -INFINITY;
      if (logit != -INFINITY) logit = Finite(logit + biases[j].bias);
    }
    edited[id] = logit;
  }
}

__device__ __forceinline__ float Penalized(const SamplingRow& row, float logit, int generated) {
  if (logit == -INFINITY) return logit;
  logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  logit -= row.frequency_penalty * static_cast<float>(generated);
  if (generated > 0) logit -= row.presence_penalty;
  return Finite(logit);
}

/// Counts the history's tokens range by range of the vocabulary, then edits the logit of each.
/// history: the row's tokens, from the first.
__device__ __forceinline__ void Penalize(const SamplingRow& row, const int32_t* history, int vocab,
                                         float* edited, TokenUses& uses) {
  const auto num_tokens = static_cast<int>(row.position);
  for (int begin = 0; begin < vocab; begin += TokenUses::kTokens) {
    const int count = min(TokenUses::kTokens, vocab - begin);
    for (int i = ThreadIndex(); i < count; i += NumThreads()) uses.count[i] = uses.generated[i] = 0;
    __syncthreads();
    for (int i = ThreadIndex(); i < num_tokens; i += NumThreads()) {
      const int at = history[i] - begin;
      if (history[i] < 0 || at < 0 || at >= count) continue;
      atomicAdd(&uses.count[at], 1);
      if (i >= row.num_prompt_tokens) atomicAdd(&uses.generated[at], 1);
    }
    __syncthreads();
    for (int i = ThreadIndex(); i < count; i += NumThreads()) {
      if (uses.count[i] == 0) continue;
      edited[begin + i] = Penalized(row, edited[begin + i], uses.generated[i]);
    }
    __syncthreads();
  }
}

/// The row's logits after all edits, in `edited`, [vocab] rounded up to a multiple of 4 and aligned
/// to 16 bytes, for all threads of the block to read. `uses` may be memory that they have just
/// read.
__device__ __forceinline__ LogitRow EditLogits(const SampleArgs& args, const SamplingRow& row,
                                               const LogitRow& logits, float* edited,
                                               TokenUses& uses) {
  const int64_t mask_words = (logits.vocab + 31) / 32;
  const auto* masks = reinterpret_cast<const uint32_t*>(args.masks);
  MaskLogits(logits, row.mask < 0 ? nullptr : masks + row.mask * mask_words, edited);
  __syncthreads();
  AddBiases(args.biases + row.first_bias, row.num_biases, edited);
  __syncthreads();
  if (HasPenalties(row)) {
    Penalize(row, args.history + row.slot * args.max_model_len, logits.vocab, edited, uses);
  }
  return {.values = edited, .vocab = logits.vocab, .aligned = true};
}

}  // namespace shoal::cuda
