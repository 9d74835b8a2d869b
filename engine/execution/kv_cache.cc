#include "engine/execution/kv_cache.h"

#include <algorithm>
#include <limits>

namespace shoal {

int64_t KvBytesPerToken(const ModelConfig& model, DType dtype) {
  const AttentionShape shape = model.attention_shape();
  return int64_t{2} * model.num_hidden_layers * shape.num_kv_heads * shape.head_dim * SizeOf(dtype);
}

absl::StatusOr<int32_t> ChooseNumBlocks(const KvCacheConfig& config, int num_ranks,
                                        int64_t bytes_per_token, int64_t free_bytes) {
  const bool automatic = config.memory_bytes == 0;
  const bool takes_all = automatic && config.exclusive_device;
  const int64_t block_bytes = config.block_size * bytes_per_token;
  const int64_t blocks_per_sequence =
      (config.max_model_len + config.block_size - 1) / config.block_size;
  int64_t memory_bytes = config.memory_bytes / num_ranks;
  if (automatic) memory_bytes = takes_all ? free_bytes : free_bytes / 2;
  // A slot, block * block_size + offset, is an int32.
  int64_t num_blocks =
      std::min(memory_bytes / block_bytes, std::numeric_limits<int32_t>::max() / config.block_size);
  if (automatic && !takes_all) {
    const int64_t num_sequences = (config.max_num_seqs + num_ranks - 1) / num_ranks;
    num_blocks = std::min(num_blocks, num_sequences * blocks_per_sequence);
  }
  if (num_blocks < blocks_per_sequence) {
    const char* given = num_ranks > 1 ? "are a rank's share of kv_cache_memory_bytes" : "are given";
    const char* advice = "raise kv_cache_memory_bytes";
    if (takes_all) {
      given = "are left on the device";
      advice = "max_num_batched_tokens";
    } else if (automatic) {
      given = "(half of what the device has free) may be used";
      advice = "set kv_cache_memory_bytes";
    }
    return absl::ResourceExhaustedError(fmt::format(
        "the KV cache of one sequence of max_model_len {} tokens needs {} bytes and {} "
        "bytes {}: lower max_model_len or {}",
        config.max_model_len, blocks_per_sequence * block_bytes, memory_bytes, given, advice));
  }
  return static_cast<int32_t>(num_blocks);
}

absl::StatusOr<KvCache> KvCache::Create(const ModelConfig& model, DType dtype, int64_t block_size,
                                        int32_t num_blocks, Device& device) {
  const AttentionShape shape = model.attention_shape();
  KvCache cache;
  cache.num_blocks_ = num_blocks;
  for (int i = 0; i < model.num_hidden_layers; ++i) {
    ASSIGN_OR_RETURN(Tensor layer, device.Allocate(dtype, {num_blocks, 2, shape.num_kv_heads,
                                                           block_size, shape.head_dim}));
    cache.layers_.push_back(layer);
  }
  ASSIGN_OR_RETURN(cache.copies_,
                   device.Allocate(DType::kByte, {num_blocks * int64_t{sizeof(BlockCopy)}}));
  return cache;
}

void KvCache::CopyBlocks(std::span<const BlockCopy> copies, Backend& backend) const {
  if (copies.empty()) return;
  const Tensor device_copies = copies_.Rows(0, static_cast<int64_t>(copies.size_bytes()));
  backend.device->CopyFromHost(copies.data(), device_copies);
  for (const Tensor& layer : layers_) backend.ops->CopyBlocks(layer, device_copies);
}

}  // namespace shoal
