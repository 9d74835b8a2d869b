// PrefixIndex: which block holds which tokens, for blocks whose content others may share.
#pragma once

#include <absl/container/flat_hash_map.h>
#include <absl/hash/hash.h>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shoal {

/// Full blocks by what they hold: the prefix before them and their own tokens. Prefixes are told
/// apart exactly, never by a hash alone; each belongs to a domain, and domains share nothing.
/// Thread: engine.
class PrefixIndex {
 public:
  /// Stands for a domain and all its tokens up to the end of a block, or for none of its tokens.
  /// Never comes to stand for others: a block that is erased and named again gets a new one.
  using PrefixId = uint64_t;

  static constexpr PrefixId kUnknown = 0;  // no such prefix
  static constexpr int32_t kNone = -1;     // no such block

  PrefixIndex(int32_t num_blocks, int32_t block_size);
  PrefixIndex(PrefixIndex&&) = default;  // a copy's keys would point into the original

  /// The prefix of no tokens, or kUnknown if no block of `domain` is known.
  PrefixId Root(std::string_view domain) const;

  /// The prefix that ends with `block`, or kUnknown.
  PrefixId PrefixOf(int32_t block) const { return entries_[block].prefix; }

  /// The block that holds `tokens` after the prefix `parent`, or kNone.
  int32_t Find(PrefixId parent, std::span<const int32_t> tokens) const;

  /// Names `block` as the one that holds `tokens` after `parent`, a prefix of `domain`, or kUnknown
  /// for the first tokens; unless another block has that name already. Returns the block that has
  /// it now.
  int32_t Insert(std::string_view domain, PrefixId parent, std::span<const int32_t> tokens,
                 int32_t block);

  bool Contains(int32_t block) const { return entries_[block].prefix != kUnknown; }

  /// Blocks that are known.
  size_t size() const { return blocks_.size(); }

  /// Forgets `block` if it is known, and its domain with the last of its blocks. Blocks after it
  /// are no longer found.
  void Erase(int32_t block);

  /// Forgets every block.
  void Clear();

 private:
  struct Domain {
    PrefixId root = kUnknown;
    int32_t num_blocks = 0;
  };
  // A tree needs no hash, so nobody can choose names that collide.
  using Domains = std::map<std::string, Domain, std::less<>>;

  struct Entry {
    PrefixId prefix = kUnknown;
    PrefixId parent = kUnknown;
    Domains::iterator domain = {};
  };

  struct Key {
    PrefixId parent;
    std::span<const int32_t> tokens;

    bool operator==(const Key& other) const;
    /// Token by token: combine_contiguous would mix in the state, and with it the secret, only
    /// after hashing the tokens by themselves.
    template <typename H>
    friend H AbslHashValue(H state, const Key& key) {
      state = H::combine(std::move(state), key.parent);
      for (const int32_t token : key.tokens) state = H::combine(std::move(state), token);
      return state;
    }
  };
  /// Starts from a secret, so that clients cannot choose prompts that fall into one bucket.
  struct KeyHash {
    uint64_t secret;
    size_t operator()(const Key& key) const { return absl::HashOf(secret, key); }
  };

  std::span<int32_t> TokensOf(int32_t block);

  const size_t block_size_;
  std::vector<Entry> entries_;   // by block
  std::vector<int32_t> tokens_;  // [num_blocks, block_size]; the keys of blocks_ point into it
  absl::flat_hash_map<Key, int32_t, KeyHash> blocks_;
  Domains domains_;
  PrefixId last_prefix_ = kUnknown;
};

}  // namespace shoal
