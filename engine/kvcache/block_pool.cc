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

int64_t BlockPool::NumMissing(const BlockTable& table, int64_t num_tokens) const {
  const int64_t wanted = (num_tokens + block_size_ - 1) / block_size_;
  return std::max<int64_t>(wanted - std::ssize(table), 0);
}

bool BlockPool::Grow(BlockTable& table, int64_t num_tokens) {
  const int64_t missing = NumMissing(table, num_tokens);
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

BlockTable BlockPool::Fork(const BlockTable& table) {
  for (const int32_t block : table) AddOwner(block);
  return table;
}

bool BlockPool::NeedsCopy(const BlockTable& table, int64_t position) const {
  const int64_t i = position / block_size_;
  return i < std::ssize(table) && num_owners_[table[i]] > 1;
}

bool BlockPool::Replace(BlockTable& table, int64_t position, BlockCopy* copy) {
  SHOAL_CHECK(NeedsCopy(table, position), "the block of position {} has one owner", position);
  if (num_free_ == 0) return false;
  int32_t& block = table[position / block_size_];
  *copy = {.source = block, .target = TakeFree()};
  DropOwner(block);
  block = copy->target;
  return true;
}

int64_t BlockPool::NumOwnedAlone(const BlockTable& table) const {
  return std::ranges::count_if(table, [this](int32_t block) { return num_owners_[block] == 1; });
}

int64_t BlockPool::FindPrefix(std::string_view domain, std::span<const int32_t> tokens,
                              int64_t max_tokens) const {
  return Lookup(domain, tokens, max_tokens, nullptr);
}

int64_t BlockPool::MatchPrefix(std::string_view domain, std::span<const int32_t> tokens,
                               int64_t max_tokens, BlockTable& table) {
  SHOAL_CHECK(table.empty(), "a prefix is matched before the sequence has blocks");
  const int64_t num_found = Lookup(domain, tokens, max_tokens, &table);
  for (const int32_t block : table) AddOwner(block);
  return num_found;
}

int64_t BlockPool::Lookup(std::string_view domain, std::span<const int32_t> tokens,
                          int64_t max_tokens, BlockTable* found) const {
  if (!index_) return 0;
  const auto size = static_cast<size_t>(block_size_);
  const size_t end = std::min(tokens.size(), static_cast<size_t>(std::max<int64_t>(max_tokens, 0)));
  PrefixIndex::PrefixId prefix = index_->Root(domain);
  size_t begin = 0;
  for (; begin + size <= end; begin += size) {
    const int32_t block = index_->Find(prefix, tokens.subspan(begin, size));
    if (block == PrefixIndex::kNone) break;
    if (found != nullptr) found->push_back(block);
    prefix = index_->PrefixOf(block);
  }
  return static_cast<int64_t>(begin);
}

void BlockPool::CountLookup(int64_t queried_tokens, int64_t found_tokens) {
  prefix_queries_tokens_ += queried_tokens;
  prefix_hits_tokens_ += found_tokens;
}

void BlockPool::Publish(std::string_view domain, std::span<const int32_t> tokens,
                        int64_t num_tokens, BlockTable& table, int64_t& num_published) {
  if (!index_ || (num_published + 1) * block_size_ > num_tokens) return;
  const auto size = static_cast<size_t>(block_size_);
  PrefixIndex::PrefixId parent = PrefixIndex::kUnknown;
  if (num_published > 0) {
    parent = index_->PrefixOf(table[num_published - 1]);
    if (parent == PrefixIndex::kUnknown) return;  // forgotten since
  }
  for (; (num_published + 1) * block_size_ <= num_tokens; ++num_published) {
    const auto i = static_cast<size_t>(num_published);
    const int32_t known = index_->Insert(domain, parent, tokens.subspan(i * size, size), table[i]);
    parent = index_->PrefixOf(known);
    if (known == table[i]) continue;
    // Sharing the known block, rather than keeping a copy, saves memory and makes the owner of a
    // block own its parent too.
    AddOwner(known);
    DropOwner(table[i]);
    table[i] = known;
  }
}

void BlockPool::ResetPrefixCache() {
  if (index_) index_->Clear();
  num_cached_ = 0;
}

BlockPoolStats BlockPool::stats() const {
  return {.num_blocks = num_blocks_,
          .num_free = num_free_,
          .num_cached = num_cached_,
          .num_shared = num_shared_,
          .prefix_queries_tokens = prefix_queries_tokens_,
          .prefix_hits_tokens = prefix_hits_tokens_};
}

int32_t BlockPool::TakeFree() {
  const int32_t block = links_[num_blocks_].next;
  AddOwner(block);
  if (index_) index_->Erase(block);
  return block;
}

void BlockPool::AddOwner(int32_t block) {
  const int32_t num_owners = ++num_owners_[block];
  if (num_owners == 2) ++num_shared_;
  if (num_owners > 1) return;
  Unlink(block);
  if (IsKnown(block)) --num_cached_;
}

void BlockPool::DropOwner(int32_t block) {
  SHOAL_CHECK(num_owners_[block] > 0, "block {} is given back twice", block);
  const int32_t num_owners = --num_owners_[block];
  if (num_owners == 1) --num_shared_;
  if (num_owners > 0) return;
  // Blocks that nobody can find again are reused first, known ones in the order of their release.
  const bool known = IsKnown(block);
  if (known) ++num_cached_;
  InsertAfter(known ? links_[num_blocks_].previous : num_blocks_, block);
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
