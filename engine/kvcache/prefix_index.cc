#include "engine/kvcache/prefix_index.h"

#include <algorithm>
#include <random>

#include "kernels/status.h"

namespace shoal {
namespace {

uint64_t RandomSecret() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32) | random();
}

}  // namespace

bool PrefixIndex::Key::operator==(const Key& other) const {
  return parent == other.parent && std::ranges::equal(tokens, other.tokens);
}

PrefixIndex::PrefixIndex(int32_t num_blocks, int32_t block_size)
    : block_size_(static_cast<size_t>(block_size)),
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(entries_.size() * block_size_),
      blocks_(0, KeyHash{RandomSecret()}) {}

PrefixIndex::PrefixId PrefixIndex::Root(std::string_view domain) const {
  const auto found = domains_.find(domain);
  return found == domains_.end() ? kUnknown : found->second.root;
}

int32_t PrefixIndex::Find(PrefixId parent, std::span<const int32_t> tokens) const {
  const auto found = blocks_.find(Key{parent, tokens});
  return found == blocks_.end() ? kNone : found->second;
}

int32_t PrefixIndex::Insert(std::string_view domain, PrefixId parent,
                            std::span<const int32_t> tokens, int32_t block) {
  SHOAL_CHECK(tokens.size() == block_size_, "{} tokens in a block of {}", tokens.size(),
              block_size_);
  auto home = domains_.find(domain);
  if (home == domains_.end()) {
    home = domains_.emplace(domain, Domain{.root = ++last_prefix_}).first;
  }
  if (parent == kUnknown) parent = home->second.root;
  if (const int32_t known = Find(parent, tokens); known != kNone) return known;

  Entry& entry = entries_[block];
  if (Contains(block)) {
    // Its name was that of a parent which is forgotten since.
    SHOAL_CHECK(entry.domain == home && std::ranges::equal(tokens, TokensOf(block)),
                "block {} holds other tokens", block);
    blocks_.erase(Key{entry.parent, TokensOf(block)});
  } else {
    std::ranges::copy(tokens, TokensOf(block).begin());
    entry = {.prefix = ++last_prefix_, .domain = home};
    ++home->second.num_blocks;
  }
  entry.parent = parent;
  blocks_.emplace(Key{parent, TokensOf(block)}, block);
  return block;
}

void PrefixIndex::Erase(int32_t block) {
  if (!Contains(block)) return;
  const Entry& entry = entries_[block];
  blocks_.erase(Key{entry.parent, TokensOf(block)});
  if (--entry.domain->second.num_blocks == 0) domains_.erase(entry.domain);
  entries_[block] = {};
}

void PrefixIndex::Clear() {
  blocks_.clear();
  domains_.clear();
  std::ranges::fill(entries_, Entry{});
}

std::span<int32_t> PrefixIndex::TokensOf(int32_t block) {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * block_size_, block_size_);
}

}  // namespace shoal
