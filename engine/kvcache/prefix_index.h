// PrefixIndex: which block holds which tokens, for blocks whose content others may share.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/hash/hash.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace shoal {

/// A tree of full blocks. A block is known by its parent, the block before it, and its own tokens;
/// so a block's name stands for all tokens up to its end, and two prefixes are told apart exactly,
/// never by a hash alone. The owner erases children before their parent. Thread: engine.
class PrefixIndex {
 public:
  static constexpr int32_t kNone = -1;  // parent of a first block; also: no such block

  PrefixIndex(int32_t num_blocks, int32_t block_size);

  /// The block that holds `tokens` after `parent`, or kNone.
  int32_t Find(int32_t parent, std::span<const int32_t> tokens) const;

  /// Names `block`, unless a block of that parent and those tokens is known already. Returns the
  /// block that has the name now.
  int32_t Insert(int32_t parent, std::span<const int32_t> tokens, int32_t block);

  bool Contains(int32_t block) const { return entries_[block].known; }

  /// Forgets `block` if it is known.
  void Erase(int32_t block);

 private:
  struct Key {
    int32_t parent;
    std::span<const int32_t> tokens;

    bool operator==(const Key& other) const;
    template <typename H>
    friend H AbslHashValue(H state, const Key& key) {
      state = H::combine_contiguous(std::move(state), key.tokens.data(), key.tokens.size());
      return H::combine(std::move(state), key.parent);
    }
  };
  /// Starts from a secret, so that clients cannot choose prompts that fall into one bucket.
  struct KeyHash {
    uint64_t secret;
    size_t operator()(const Key& key) const { return absl::HashOf(secret, key); }
  };
  struct Entry {
    int32_t parent = kNone;
    int32_t num_children = 0;
    bool known = false;
  };

  std::span<int32_t> TokensOf(int32_t block);

  const size_t block_size_;
  std::vector<Entry> entries_;   // by block
  std::vector<int32_t> tokens_;  // [num_blocks, block_size]; the keys of blocks_ point into it
  absl::flat_hash_map<Key, int32_t, KeyHash> blocks_;
};

}  // namespace shoal
