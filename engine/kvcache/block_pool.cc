#include "engine/kvcache/block_pool.h"

#include <algorithm>
#include <ranges>

#include "kernels/status.h"

namespace shoal {

BlockPool::BlockPool(int32_t num_blocks, int32_t block_size, bool enable_prefix_caching)
    : num_blocks_(num_blocks),
      block_size_(block_size),
      num_owners_(static_cast<size_t>(num_blocks), 0),
      links_(static_cast<size_t>(num_blocks) + 1, Link{num_blocks, num_blocks}) {
  SHOAL_CHECK(num_blocks > 0 && block_size > 0, "{} blocks of {} tokens", num_blocks, block_size);
  if (enable_prefix_caching) index_.emplace(num_blocks, block_size);
  for (int32_t block = num_blocks - 1; block >= 0; --block) InsertAfter(num_blocks_, block);
}

bool BlockPool::Grow(BlockTable& table, int64_t num_tokens) {
  const int64_t wanted = (num_tokens + block_size_ - 1) / block_size_;
  const int64_t missing = wanted - static_cast<int64_t>(table.size());
  if (missing > num_free_) return false;
  for (int64_t i = 0; i < missing; ++i) table.push_back(TakeFree());
  return true;
}

void BlockPool::Release(BlockTable& table) {
  // From the end: a block comes before its parent in the list of free blocks, so it is reclaimed
  // first.
  for (const int32_t block : std::views::reverse(table)) DropOwner(block);
  table.clear();
}

int64_t BlockPool::MatchPrefix(std::span<const int32_t> tokens, int64_t max_tokens,
                               BlockTable& table) {
  SHOAL_CHECK(table.empty(), "a prefix is matched before the sequence has blocks");
  if (!index_) return 0;
  const size_t size = static_cast<size_t>(block_size_);
  const size_t end = std::min(tokens.size(), static_cast<size_t>(std::max<int64_t>(max_tokens, 0)));
  int32_t parent = PrefixIndex::kNone;
  for (size_t begin = 0; begin + size <= end; begin += size) {
    parent = index_->Find(parent, tokens.subspan(begin, size));
    if (parent == PrefixIndex::kNone) break;
    AddOwner(parent);
    table.push_back(parent);
  }
  return static_cast<int64_t>(table.size()) * block_size_;
}

void BlockPool::CountLookup(int64_t queried_tokens, int64_t found_tokens) {
  prefix_queries_tokens_ += queried_tokens;
  prefix_hits_tokens_ += found_tokens;
}

void BlockPool::Publish(std::span<const int32_t> tokens, int64_t num_tokens, BlockTable& table,
                        int64_t& num_published) {
  if (!index_) return;
  for (; (num_published + 1) * block_size_ <= num_tokens; ++num_published) {
    const auto i = static_cast<size_t>(num_published);
    const auto size = static_cast<size_t>(block_size_);
    const int32_t parent = i == 0 ? PrefixIndex::kNone : table[i - 1];
    const int32_t known = index_->Insert(parent, tokens.subspan(i * size, size), table[i]);
    if (known == table[i]) continue;
    // Sharing the known block, rather than keeping a copy, makes the owner of a block own its
    // parent too.
    AddOwner(known);
    DropOwner(table[i]);
    table[i] = known;
  }
}

BlockPoolStats BlockPool::stats() const {
  return {num_blocks_, num_free_, prefix_queries_tokens_, prefix_hits_tokens_};
}

int32_t BlockPool::TakeFree() {
  const int32_t block = links_[num_blocks_].next;
  if (index_) index_->Erase(block);
  AddOwner(block);
  return block;
}

void BlockPool::AddOwner(int32_t block) {
  if (num_owners_[block]++ == 0) Unlink(block);
}

void BlockPool::DropOwner(int32_t block) {
  SHOAL_CHECK(num_owners_[block] > 0, "block {} is given back twice", block);
  if (--num_owners_[block] > 0) return;
  // Blocks that nobody can find again are reused first, published ones in the order of their
  // release.
  const bool published = index_ && index_->Contains(block);
  InsertAfter(published ? links_[num_blocks_].previous : num_blocks_, block);
}

void BlockPool::InsertAfter(int32_t position, int32_t block) {
  const int32_t next = links_[position].next;
  links_[block] = {position, next};
  links_[position].next = block;
  links_[next].previous = block;
  ++num_free_;
}

void BlockPool::Unlink(int32_t block) {
  const auto [previous, next] = links_[block];
  links_[previous].next = next;
  links_[next].previous = previous;
  --num_free_;
}

}  // namespace shoal
