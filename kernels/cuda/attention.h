// Rotary embedding, the write to the KV cache, and attention over its pages.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bfloat16.h"

namespace shoal::cuda {

/// Ops::RopeAndWriteKv and Ops::PagedAttention; the names and shapes are theirs. head_dim is a
/// multiple of 16, at most 256.
struct AttentionArgs {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;
  int64_t num_tokens = 0;
  int64_t num_sequences = 0;
  int64_t max_blocks = 0;  // columns of block_tables
  int64_t max_query_len = 0;
  int64_t max_context_len = 0;
  const int32_t* positions = nullptr;
  const int32_t* slot_mapping = nullptr;
  const int32_t* cu_seqlens = nullptr;
  const int32_t* block_tables = nullptr;
  BFloat16* qkv = nullptr;
  BFloat16* kv = nullptr;  // one layer: [num_blocks, 2 (K, V), num_kv_heads, block_size, head_dim]
  // AttentionCounterBytes(); zero before the first PagedAttention(), which leaves them zero again.
  int32_t* counters = nullptr;
};

/// rope_table [max_positions, head_dim / 2, 2].
void RopeAndWriteKv(const AttentionArgs& args, const float* rope_table, cudaStream_t stream);

/// Bytes of working memory, aligned to 256 bytes, and of counters that PagedAttention() needs,
/// whatever the batch.
size_t AttentionWorkspaceBytes(const AttentionArgs& heads);
size_t AttentionCounterBytes(const AttentionArgs& heads);

/// out [num_tokens, num_heads * head_dim]. A query's result depends on nothing but its sequence up
/// to it: keys are taken in splits of 256 positions, each summed by itself, the splits in order.
void PagedAttention(const AttentionArgs& args, void* workspace, BFloat16* out, cudaStream_t stream);

}  // namespace shoal::cuda
