// KvCache: the keys and values of every token in the cache, on one rank's device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/model_config.h"
#include "kernels/backend.h"

namespace shoal {

/// What the size of the KV cache depends on, on all ranks together.
struct KvCacheConfig {
  int64_t block_size = 0;         // tokens per block
  int64_t max_model_len = 0;      // tokens of one sequence
  int64_t max_num_seqs = 0;       // sequences that run at once
  int64_t memory_bytes = 0;       // 0: automatic
  bool exclusive_device = false;  // nobody else wants the device's memory: automatic takes it all
};

/// Bytes of one token's keys and values in all layers.
int64_t KvBytesPerToken(const ModelConfig& model, DType dtype);

/// How many blocks the cache of one of `num_ranks` gets: as many as its part of memory_bytes holds.
/// If that is 0: as many as `free_bytes` hold on an exclusive device; on another enough for its
/// part of max_num_seqs sequences of max_model_len tokens, but no more than half of `free_bytes`.
/// RESOURCE_EXHAUSTED, with what is needed and what to change, if not even one sequence would fit.
absl::StatusOr<int32_t> ChooseNumBlocks(const KvCacheConfig& config, int num_ranks,
                                        int64_t bytes_per_token, int64_t free_bytes);

/// Paged storage, addressed by the block numbers of the BlockPool. Thread: worker.
class KvCache {
 public:
  /// RESOURCE_EXHAUSTED if the device has too little memory.
  static absl::StatusOr<KvCache> Create(const ModelConfig& model, DType dtype, int64_t block_size,
                                        int32_t num_blocks, Device& device);

  /// Enqueues copies of whole blocks in all layers. `copies` stay untouched until they are done.
  void CopyBlocks(std::span<const BlockCopy> copies, Backend& backend) const;

  /// One tensor [num_blocks, 2 (K, V), num_kv_heads, block_size, head_dim] per layer.
  std::span<const Tensor> layers() const { return layers_; }
  int32_t num_blocks() const { return num_blocks_; }

 private:
  int32_t num_blocks_ = 0;
  std::vector<Tensor> layers_;
  Tensor copies_;  // [num_blocks * sizeof(BlockCopy)] bytes: each has another target
};

}  // namespace shoal
