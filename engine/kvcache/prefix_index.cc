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

int32_t PrefixIndex::Find(int32_t parent, std::span<const int32_t> tokens) const {
  const auto found = blocks_.find(Key{parent, tokens});
  return found == blocks_.end() ? kNone : found->second;
}

int32_t PrefixIndex::Insert(int32_t parent, std::span<const int32_t> tokens, int32_t block) {
  SHOAL_CHECK(tokens.size() == block_size_, "{} tokens in a block of {}", tokens.size(),
              block_size_);
  SHOAL_CHECK(parent == kNone || Contains(parent), "the parent of a block must be known");
  if (const int32_t known = Find(parent, tokens); known != kNone) return known;
  SHOAL_CHECK(!Contains(block), "block {} holds other tokens", block);
  std::ranges::copy(tokens, TokensOf(block).begin());
  entries_[block] = {.parent = parent, .known = true};
  if (parent != kNone) ++entries_[parent].num_children;
  blocks_.emplace(Key{parent, TokensOf(block)}, block);
  return block;
}

void PrefixIndex::Erase(int32_t block) {
  if (!Contains(block)) return;
  const auto [parent, num_children, known] = entries_[block];
  SHOAL_CHECK(num_children == 0, "block {} is erased before its {} children", block, num_children);
  blocks_.erase(Key{parent, TokensOf(block)});
  if (parent != kNone) --entries_[parent].num_children;
  entries_[block] = {};
}

std::span<int32_t> PrefixIndex::TokensOf(int32_t block) {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * block_size_, block_size_);
}

}  // namespace shoal
