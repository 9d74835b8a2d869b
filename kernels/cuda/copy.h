// Embedding and the other ops that only move data.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/records.h"

namespace shoal::cuda {

/// out[i] = table[row_ids[i]], or zeros for a negative id; row_size elements each, a multiple of 8.
/// Ops::Embed and Ops::GatherRows.
struct GatherArgs {
  const BFloat16* table = nullptr;
  const int32_t* row_ids = nullptr;
  BFloat16* out = nullptr;
  int64_t num_rows = 0;
  int64_t row_size = 0;
};
void GatherRows(const GatherArgs& args, cudaStream_t stream);

/// Ops::MapIds over num_ids elements.
void MapIds(const int32_t* ids, const int32_t* table, int32_t* out, int64_t num_ids,
            cudaStream_t stream);

/// Ops::CopyBlocks: blocks of block_bytes, a multiple of 16.
void CopyBlocks(void* kv, const BlockCopy* copies, int64_t num_copies, int64_t block_bytes,
                cudaStream_t stream);

/// Ops::ResolveTokens.
struct ResolveArgs {
  int32_t* token_ids = nullptr;
  const int32_t* slots = nullptr;
  const int32_t* positions = nullptr;
  int32_t* history = nullptr;
  int64_t num_tokens = 0;
  int64_t max_model_len = 0;  // columns of history
};
void ResolveTokens(const ResolveArgs& args, cudaStream_t stream);

}  // namespace shoal::cuda
