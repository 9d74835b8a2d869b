#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "engine/kvcache/block_pool.h"

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int32_t kNumBlocks = 24;
constexpr int32_t kBlockSize = 2;
constexpr std::array<const char*, 3> kDomains = {"", "a", "b"};

/// What a block holds: the tokens of its sequence up to the last one written in it.
struct Content {
  size_t domain = 0;
  Tokens tokens;
};

/// Plays many sequences against a pool and knows what each block holds and who owns it.
class Oracle {
 public:
  Oracle(uint32_t seed, bool caching)
      : random_(seed), pool_(kNumBlocks, kBlockSize, caching), caching_(caching) {}

  void RunOperation() {
    Player& player = players_[Draw(players_.size())];
    const bool plays = !player.table.empty();
    switch (Draw(12)) {
      case 0:
      case 1:
        if (!plays) Start(player);
        break;
      case 2:
      case 3:
      case 4:
        if (plays) Extend(player);
        break;
      case 5:
      case 6:
      case 7:
        if (plays) Publish(player);
        break;
      case 8:
        if (plays) Fork(player);
        break;
      case 9:
      case 10:
        if (Draw(3) == 0) Release(player);
        break;
      default:
        if (Draw(40) == 0) Reset();
    }
    CheckBlocks();
  }

  void ReleaseAll() {
    for (Player& player : players_) Release(player);
    CheckBlocks();
    EXPECT_EQ(pool_.num_free(), kNumBlocks);
  }

  // How often each thing came about.
  int64_t hits = 0;      // blocks
  int64_t refusals = 0;  // to grow
  int64_t forks = 0;
  int64_t copies = 0;
  int64_t no_copies = 0;  // since no block was free
  int64_t merges = 0;     // blocks given up for a known one
  int64_t resets = 0;
  int64_t silenced = 0;  // published no more, after a reset

 private:
  struct Player {
    size_t domain = 0;
    Tokens tokens;  // all written
    BlockTable table;
    int64_t num_published = 0;
    bool was_reset = false;  // after it had published
  };

  size_t Draw(size_t bound) { return random_() % bound; }
  int32_t DrawToken() { return static_cast<int32_t>(Draw(2)); }

  /// The player's tokens up to the end of its block `i`, which that block must hold.
  static std::span<const int32_t> TokensOf(const Player& player, size_t i) {
    return std::span(player.tokens).first(std::min(player.tokens.size(), (i + 1) * kBlockSize));
  }
  bool HoldsItsTokens(const Player& player, size_t i) const {
    const Content& content = contents_[player.table[i]];
    return content.domain == player.domain &&
           std::ranges::equal(content.tokens, TokensOf(player, i));
  }

  int NumOwners(int32_t block) const {
    return static_cast<int>(std::ranges::count_if(players_, [block](const Player& player) {
      return std::ranges::find(player.table, block) != player.table.end();
    }));
  }

  /// The tokens that the player must find, since living ones have published them.
  int64_t NumPublished(const Player& player) const {
    int64_t most = 0;
    for (const Player& other : players_) {
      if (&other == &player || other.domain != player.domain || other.was_reset) continue;
      const auto end = std::ranges::mismatch(player.tokens, other.tokens).in1;
      most =
          std::max(most, std::min((end - player.tokens.begin()) / kBlockSize, other.num_published));
    }
    return most * kBlockSize;
  }

  void Start(Player& player) {
    player.domain = Draw(kDomains.size());
    Tokens tokens(1 + Draw(12));
    for (int32_t& token : tokens) token = DrawToken();
    player.tokens = tokens;
    const auto max_tokens = static_cast<int64_t>(Draw(tokens.size() + 1));
    const auto before = pool_.stats();
    const int64_t found = pool_.FindPrefix(kDomains[player.domain], tokens, max_tokens);
    ASSERT_EQ(pool_.stats().num_cached, before.num_cached);
    ASSERT_EQ(pool_.MatchPrefix(kDomains[player.domain], tokens, max_tokens, player.table), found);
    ASSERT_LE(found, max_tokens);
    ASSERT_EQ(found, std::ssize(player.table) * kBlockSize);
    ASSERT_GE(found,
              caching_ ? std::min(NumPublished(player), max_tokens / kBlockSize * kBlockSize) : 0);
    for (size_t i = 0; i < player.table.size(); ++i) {
      ASSERT_TRUE(known_.contains(player.table[i]));
      ASSERT_TRUE(HoldsItsTokens(player, i)) << "a wrong block was found";
    }
    player.num_published = found / kBlockSize;
    hits += player.num_published;
    player.tokens.resize(static_cast<size_t>(found));
    Write(player, {tokens.begin() + found, tokens.end()});
    if (player.table.empty()) player = {};
  }

  void Extend(Player& player) {
    Tokens more(Draw(5));
    for (int32_t& token : more) token = DrawToken();
    Write(player, more);
  }

  /// Appends tokens to the player if there is room.
  void Write(Player& player, const Tokens& more) {
    const int64_t first = std::ssize(player.tokens);
    const int64_t end = first + std::ssize(more);
    if (more.empty() || !MakeOwn(player, first) || !Grow(player, end)) return;
    player.tokens.insert(player.tokens.end(), more.begin(), more.end());
    for (int64_t i = first / kBlockSize; i * kBlockSize < end; ++i) {
      ASSERT_EQ(NumOwners(player.table[i]), 1) << "a block that is written has one owner";
      const std::span<const int32_t> tokens = TokensOf(player, i);
      contents_[player.table[i]] = {player.domain, {tokens.begin(), tokens.end()}};
    }
  }

  bool MakeOwn(Player& player, int64_t position) {
    const size_t i = static_cast<size_t>(position / kBlockSize);
    const bool is_shared = i < player.table.size() && NumOwners(player.table[i]) > 1;
    EXPECT_EQ(pool_.NeedsCopy(player.table, position), is_shared);
    if (!is_shared) return true;
    const BlockTable before = player.table;
    const int32_t num_free = pool_.num_free();
    BlockCopy copy;
    const bool replaced = pool_.Replace(player.table, position, &copy);
    EXPECT_EQ(replaced, num_free > 0);
    if (!replaced) {
      EXPECT_EQ(player.table, before);
      ++no_copies;
      return false;
    }
    EXPECT_EQ(copy.source, before[i]);
    EXPECT_EQ(copy.target, player.table[i]);
    contents_[copy.target] = contents_[copy.source];
    known_.erase(copy.target);
    ++copies;
    return true;
  }

  bool Grow(Player& player, int64_t num_tokens) {
    const BlockTable before = player.table;
    const int64_t wanted =
        std::max<int64_t>((num_tokens + kBlockSize - 1) / kBlockSize, std::ssize(before));
    const int64_t missing = wanted - std::ssize(before);
    const BlockPoolStats stats = pool_.stats();
    EXPECT_EQ(pool_.NumMissing(before, num_tokens), missing);
    EXPECT_EQ(pool_.Grow(player.table, num_tokens), missing <= stats.num_free);
    if (missing > stats.num_free) {
      EXPECT_EQ(player.table, before);
      ++refusals;
      return false;
    }
    EXPECT_EQ(std::ssize(player.table), wanted);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), player.table.begin()));
    int64_t num_reclaimed = 0;
    for (int64_t i = std::ssize(before); i < wanted; ++i) {
      num_reclaimed += static_cast<int64_t>(known_.erase(player.table[i]));
    }
    EXPECT_EQ(num_reclaimed, std::max<int64_t>(missing - stats.num_free + stats.num_cached, 0))
        << "known blocks are reclaimed last";
    return true;
  }

  void Publish(Player& player) {
    const auto computed = static_cast<int64_t>(Draw(player.tokens.size() + 1));
    const int64_t before = player.num_published;
    const BlockTable table = player.table;
    const bool can = before == 0 || known_.contains(table[before - 1]);
    pool_.Publish(kDomains[player.domain], player.tokens, computed, player.table,
                  player.num_published);
    const int64_t wanted = std::max(before, computed / kBlockSize);
    ASSERT_EQ(player.num_published, caching_ && can ? wanted : before);
    ASSERT_TRUE(can || player.was_reset);
    if (!can && wanted > before) ++silenced;
    for (int64_t i = before; i < player.num_published; ++i) {
      ASSERT_TRUE(HoldsItsTokens(player, i)) << "a wrong block was shared";
      known_.insert(player.table[i]);
      merges += player.table[i] == table[i] ? 0 : 1;
    }
  }

  void Fork(const Player& player) {
    const auto free =
        std::ranges::find_if(players_, [](const Player& p) { return p.table.empty(); });
    if (free == players_.end()) return;
    *free = player;
    free->table = pool_.Fork(player.table);
    ASSERT_EQ(free->table, player.table);
    ++forks;
  }

  void Release(Player& player) {
    pool_.Release(player.table);
    player = {};
  }

  void Reset() {
    pool_.ResetPrefixCache();
    known_.clear();
    for (Player& player : players_) player.was_reset |= player.num_published > 0;
    ++resets;
  }

  /// The pool's counts are those of the players, and every block holds what its owners think.
  void CheckBlocks() {
    std::vector<int> owners(kNumBlocks, 0);
    for (const Player& player : players_) {
      for (size_t i = 0; i < player.table.size(); ++i) {
        const int32_t block = player.table[i];
        ++owners[block];
        if (i * kBlockSize < player.tokens.size()) {
          ASSERT_TRUE(HoldsItsTokens(player, i)) << "somebody wrote in a shared block";
        }
      }
    }
    const BlockPoolStats stats = pool_.stats();
    ASSERT_EQ(stats.num_free, std::ranges::count(owners, 0));
    ASSERT_EQ(stats.num_free, pool_.num_free());
    ASSERT_EQ(stats.num_shared, std::ranges::count_if(owners, [](int n) { return n > 1; }));
    ASSERT_EQ(stats.num_cached,
              std::ranges::count_if(known_, [&](int32_t block) { return owners[block] == 0; }));
    const Player& player = players_[Draw(players_.size())];
    ASSERT_EQ(pool_.NumOwnedAlone(player.table),
              std::ranges::count_if(player.table, [&](int32_t b) { return owners[b] == 1; }));
  }

  std::mt19937 random_;
  BlockPool pool_;
  const bool caching_;
  std::vector<Player> players_ = std::vector<Player>(7);
  std::vector<Content> contents_ = std::vector<Content>(kNumBlocks);
  std::set<int32_t> known_;  // blocks that were published and not taken since
};

TEST(BlockPool, AgreesWithAnOracleOverRandomOperations) {
  for (const bool caching : {true, false}) {
    Oracle oracle(caching ? 1 : 2, caching);
    for (int i = 0; i < (caching ? 200'000 : 20'000) && !testing::Test::HasFailure(); ++i)
      oracle.RunOperation();
    oracle.ReleaseAll();
    for (const int64_t count : {oracle.refusals, oracle.forks, oracle.copies, oracle.no_copies}) {
      EXPECT_GT(count, 100);
    }
    for (const int64_t count : {oracle.hits, oracle.merges, oracle.silenced}) {
      EXPECT_EQ(count > 100, caching);
    }
    EXPECT_GT(oracle.resets, 20);
  }
}

}  // namespace
}  // namespace shoal
