// BlockPool: which blocks of the paged KV cache are free, and who shares the rest. Host only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>


namespace shoal {

/// The blocks of one sequence, in order: token position p lives in blocks[p / block_size].
using BlockTable = std::vector<int32_t>;

struct BlockPoolStats {
  int32_t num_blocks = 0;
  int32_t num_free = 0;           // unused, or held by the prefix index alone and so reclaimable
  int64_t prefix_queries_tokens = 0;  // tokens looked up in the prefix index, ever
  int64_t prefix_hits_tokens = 0;     // of which found
};

/// Reference-counted blocks. A full block may be published under the hash of its tokens and all before
/// them; it then outlives its sequence until the space is needed (least recently used first).
/// Thread: engine.
class BlockPool {
 public:
  /// `num_blocks` blocks of `block_size` tokens. Without `enable_prefix_caching` nothing is published
  /// and every lookup is empty.
  BlockPool(int32_t num_blocks, int32_t block_size, bool enable_prefix_caching);

  /// Appends blocks to `table` until it holds `num_tokens` tokens. All or nothing: false, and the table
  /// as it was, if too few blocks are free.
  bool Grow(BlockTable& table, int64_t num_tokens);

  /// Gives the sequence's blocks back and empties the table.
  void Release(BlockTable& table);

  /// Appends to the empty `table` the longest run of published blocks that hold a prefix of `tokens`,
  /// at most `max_tokens` tokens. Returns the number of tokens found, a multiple of the block size.
  int64_t MatchPrefix(std::span<const int32_t> tokens, int64_t max_tokens, BlockTable& table);

  /// Publishes the full blocks among the first `num_tokens` tokens, already computed, of a sequence.
  /// `num_published` is the sequence's own count of blocks already published; it is brought up to date.
  void Publish(std::span<const int32_t> tokens, int64_t num_tokens, const BlockTable& table,
               int64_t& num_published);

  int32_t num_free() const;
  int32_t block_size() const { return block_size_; }
  BlockPoolStats stats() const;
};

}  // namespace shoal
