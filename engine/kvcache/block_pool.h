// BlockPool: which blocks of the paged KV cache are free, and who shares the rest. Host only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/kvcache/prefix_index.h"
#include "kernels/ops.h"

namespace shoal {

/// The blocks of one sequence, in order: token position p lives in blocks[p / block_size].
using BlockTable = std::vector<int32_t>;

struct BlockPoolStats {
  int32_t num_blocks = 0;
  int32_t num_free = 0;               // owned by no sequence, cached ones included
  int32_t num_cached = 0;             // of the free ones, those with a known prefix: reclaimed last
  int32_t num_shared = 0;             // owned by more than one sequence
  int64_t prefix_queries_tokens = 0;  // tokens looked up in the prefix index, ever
  int64_t prefix_hits_tokens = 0;     // of which found
};

/// Reference-counted blocks of one rank. A full block may be published under its tokens, all before
/// them and the domain they belong to; it then outlives its sequence until the space is needed
/// (least recently used first). Thread: engine.
class BlockPool {
 public:
  /// `num_blocks` blocks of `block_size` tokens. Without `enable_prefix_caching` nothing is
  /// published and every lookup is empty.
  BlockPool(int32_t num_blocks, int32_t block_size, bool enable_prefix_caching);

  /// Blocks that `table` lacks to hold `num_tokens` tokens.
  int64_t NumMissing(const BlockTable& table, int64_t num_tokens) const;

  /// Appends blocks to `table` until it holds `num_tokens` tokens. All or nothing: false, and the
  /// table as it was, if too few blocks are free.
  bool Grow(BlockTable& table, int64_t num_tokens);

  /// Gives the sequence's blocks back and empties the table.
  void Release(BlockTable& table);

  /// Another owner of the same blocks, for a sequence that begins with the same tokens.
  BlockTable Fork(const BlockTable& table);

  /// The block of `position`, if the table has it and others own it too, must be replaced before
  /// anything is written there.
  bool NeedsCopy(const BlockTable& table, int64_t position) const;

  /// Replaces the block of `position` by one of its own; the content is still to be copied. False,
  /// and nothing done, if no block is free. NeedsCopy() holds.
  bool Replace(BlockTable& table, int64_t position, BlockCopy* copy);

  /// Blocks of `table` that nobody else owns: those that its release would free.
  int64_t NumOwnedAlone(const BlockTable& table) const;

  /// Tokens of the longest run of published blocks of `domain` that hold a prefix of `tokens`, at
  /// most `max_tokens`; a multiple of the block size.
  int64_t FindPrefix(std::string_view domain, std::span<const int32_t> tokens,
                     int64_t max_tokens) const;

  /// FindPrefix(), and appends the blocks to the empty `table`.
  int64_t MatchPrefix(std::string_view domain, std::span<const int32_t> tokens, int64_t max_tokens,
                      BlockTable& table);

  /// Counts a lookup in the statistics. MatchPrefix does not: who waits for room asks again every
  /// step.
  void CountLookup(int64_t queried_tokens, int64_t found_tokens);

  /// Publishes in `domain` the full blocks among the first `num_tokens` tokens, already computed,
  /// of a sequence. Where another sequence has published the same tokens, `table` takes that block
  /// and gives back its own. `num_published` is the sequence's count of blocks published so far,
  /// matched ones included; it is brought up to date. After ResetPrefixCache() a sequence that has
  /// published before publishes no more.
  void Publish(std::string_view domain, std::span<const int32_t> tokens, int64_t num_tokens,
               BlockTable& table, int64_t& num_published);

  /// Forgets every published block; who owns one keeps it.
  void ResetPrefixCache();

  int32_t num_blocks() const { return num_blocks_; }
  int32_t num_free() const { return num_free_; }
  int32_t block_size() const { return block_size_; }
  BlockPoolStats stats() const;

 private:
  /// A link of the list of free blocks. Blocks are taken at its head; the list ends at itself.
  struct Link {
    int32_t previous;
    int32_t next;
  };

  /// FindPrefix(), and appends the blocks to `found` unless it is null.
  int64_t Lookup(std::string_view domain, std::span<const int32_t> tokens, int64_t max_tokens,
                 BlockTable* found) const;
  bool IsKnown(int32_t block) const { return index_ && index_->Contains(block); }

  int32_t TakeFree();
  void AddOwner(int32_t block);
  void DropOwner(int32_t block);
  void InsertAfter(int32_t position, int32_t block);
  void Unlink(int32_t block);

  const int32_t num_blocks_;
  const int32_t block_size_;
  int32_t num_free_ = 0;
  int32_t num_cached_ = 0;
  int32_t num_shared_ = 0;
  std::vector<int32_t> num_owners_;  // by block
  std::vector<Link> links_;  // by block; one more, number num_blocks_, is the ends of the list
  std::optional<PrefixIndex> index_;
  int64_t prefix_queries_tokens_ = 0;
  int64_t prefix_hits_tokens_ = 0;
};

}  // namespace shoal
