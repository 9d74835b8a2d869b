#include "engine/kvcache/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;
using testing::ElementsAre;
using testing::IsEmpty;

TEST(BlockPool, GrowsToWholeBlocks) {
  BlockPool pool(4, 8, true);
  BlockTable table;
  EXPECT_TRUE(pool.Grow(table, 1));
  EXPECT_EQ(table.size(), 1u);
  EXPECT_TRUE(pool.Grow(table, 8));
  EXPECT_EQ(table.size(), 1u);
  EXPECT_TRUE(pool.Grow(table, 9));
  EXPECT_EQ(table.size(), 2u);
  EXPECT_NE(table[0], table[1]);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(BlockPool, GrowsAllOrNothing) {
  BlockPool pool(2, 8, true);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 8));
  const BlockTable before = table;
  EXPECT_FALSE(pool.Grow(table, 17));
  EXPECT_EQ(table, before);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPool, ReleasesBlocksInOneStep) {
  BlockPool pool(3, 8, true);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 24));
  EXPECT_EQ(pool.num_free(), 0);
  pool.Release(table);
  EXPECT_THAT(table, IsEmpty());
  EXPECT_EQ(pool.num_free(), 3);
}

TEST(BlockPool, SharesPublishedBlocks) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4, 5};
  BlockTable first;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(first, 5));
  pool.Publish(tokens, 5, first, num_published);
  EXPECT_EQ(num_published, 2);

  BlockTable second;
  EXPECT_EQ(pool.MatchPrefix(tokens, 5, second), 4);
  EXPECT_THAT(second, ElementsAre(first[0], first[1]));
  EXPECT_EQ(pool.num_free(), 5);
  pool.Release(first);
  EXPECT_EQ(pool.num_free(), 6);
  pool.Release(second);
  EXPECT_EQ(pool.num_free(), 8);
}

TEST(BlockPool, MatchesNoMoreTokensThanAllowed) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable first;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(first, 4));
  pool.Publish(tokens, 4, first, num_published);
  BlockTable second;
  EXPECT_EQ(pool.MatchPrefix(tokens, 3, second), 2);
  pool.Release(second);
  EXPECT_EQ(pool.MatchPrefix(tokens, 0, second), 0);
  EXPECT_EQ(pool.MatchPrefix(tokens, -1, second), 0);
}

TEST(BlockPool, PublishesOnlyComputedFullBlocks) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable first;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(first, 4));
  pool.Publish(tokens, 3, first, num_published);
  EXPECT_EQ(num_published, 1);
  BlockTable second;
  EXPECT_EQ(pool.MatchPrefix(tokens, 4, second), 2);
}

TEST(BlockPool, KeepsOneOfTwoEqualBlocks) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable first, second;
  int64_t first_published = 0, second_published = 0;
  ASSERT_TRUE(pool.Grow(first, 4));
  ASSERT_TRUE(pool.Grow(second, 4));
  EXPECT_EQ(pool.num_free(), 4);
  pool.Publish(tokens, 4, first, first_published);
  pool.Publish(tokens, 4, second, second_published);
  EXPECT_EQ(second, first);
  EXPECT_EQ(pool.num_free(), 6);
}

TEST(BlockPool, ReclaimsTheLeastRecentlyUsedPrefix) {
  BlockPool pool(2, 2, true);
  const auto publish = [&pool](const Tokens& tokens) {
    BlockTable table;
    int64_t num_published = 0;
    pool.MatchPrefix(tokens, 2, table);
    ASSERT_TRUE(pool.Grow(table, 2));
    pool.Publish(tokens, 2, table, num_published);
    pool.Release(table);
  };
  const auto finds = [&pool](const Tokens& tokens) {
    BlockTable table;
    const int64_t found = pool.MatchPrefix(tokens, 2, table);
    pool.Release(table);
    return found == 2;
  };
  publish({1, 1});
  publish({2, 2});
  EXPECT_TRUE(finds({1, 1}));  // which is a use
  publish({3, 3});
  EXPECT_TRUE(finds({1, 1}));
  EXPECT_TRUE(finds({3, 3}));
  EXPECT_FALSE(finds({2, 2}));
}

TEST(BlockPool, ReclaimsThePrefixFromItsEnd) {
  BlockPool pool(3, 2, true);
  const Tokens tokens = {1, 2, 3, 4, 5, 6};
  BlockTable table;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(table, 6));
  pool.Publish(tokens, 6, table, num_published);
  pool.Release(table);
  BlockTable other;
  ASSERT_TRUE(pool.Grow(other, 2));
  EXPECT_EQ(pool.MatchPrefix(tokens, 6, table), 4);
}

TEST(BlockPool, ReusesUnpublishedBlocksBeforePublishedOnes) {
  BlockPool pool(3, 2, true);
  const Tokens tokens = {1, 2};
  BlockTable table, other;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(table, 2));
  pool.Publish(tokens, 2, table, num_published);
  pool.Release(table);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(pool.Grow(other, 4));
    pool.Release(other);
  }
  EXPECT_EQ(pool.MatchPrefix(tokens, 2, table), 2);
}

TEST(BlockPool, FindsNothingWithoutPrefixCaching) {
  BlockPool pool(4, 2, false);
  const Tokens tokens = {1, 2};
  BlockTable first, second;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(first, 2));
  pool.Publish(tokens, 2, first, num_published);
  EXPECT_EQ(pool.MatchPrefix(tokens, 2, second), 0);
}

TEST(BlockPool, CountsLookups) {
  BlockPool pool(4, 2, true);
  pool.CountLookup(10, 4);
  pool.CountLookup(3, 0);
  EXPECT_EQ(pool.stats().prefix_queries_tokens, 13);
  EXPECT_EQ(pool.stats().prefix_hits_tokens, 4);
}

TEST(BlockPoolDeathTest, NoticesABlockGivenBackTwice) {
  BlockPool pool(4, 2, true);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 2));
  BlockTable copy = table;
  pool.Release(table);
  EXPECT_DEATH(pool.Release(copy), "given back twice");
}

/// Plays many sequences against a pool and knows what each block holds: the tokens up to its end.
class Oracle {
 public:
  Oracle(uint32_t seed, bool caching)
      : random_(seed), pool_(kNumBlocks, kBlockSize, caching), caching_(caching) {}

  void RunOperation() {
    Player& player = players_[random_() % players_.size()];
    switch (random_() % 4) {
      case 0:
        if (player.table.empty()) Start(player);
        break;
      case 1:
        if (!player.table.empty()) Extend(player);
        break;
      case 2:
        Publish(player);
        break;
      default:
        if (random_() % 4 == 0) Release(player);
    }
    CheckOwners();
  }

  int64_t hits() const { return hits_; }
  int64_t refusals() const { return refusals_; }

  void ReleaseAll() {
    for (Player& player : players_) Release(player);
    EXPECT_EQ(pool_.num_free(), kNumBlocks);
  }

 private:
  static constexpr int32_t kNumBlocks = 24;
  static constexpr int32_t kBlockSize = 2;

  struct Player {
    Tokens tokens;
    BlockTable table;
    int64_t num_published = 0;
  };

  static Tokens Prefix(const Tokens& tokens, size_t num_blocks) {
    return {tokens.begin(), tokens.begin() + static_cast<int64_t>(num_blocks) * kBlockSize};
  }

  void Start(Player& player) {
    player.tokens.resize(1 + random_() % 12);
    for (int32_t& token : player.tokens) token = static_cast<int32_t>(random_() % 2);
    const auto max_tokens = static_cast<int64_t>(random_() % (player.tokens.size() + 1));
    const int64_t found = pool_.MatchPrefix(player.tokens, max_tokens, player.table);
    player.num_published = found / kBlockSize;
    hits_ += found;
    ASSERT_LE(found, max_tokens);
    ASSERT_EQ(found, static_cast<int64_t>(player.table.size()) * kBlockSize);
    for (size_t i = 0; i < player.table.size(); ++i) {
      ASSERT_EQ(contents_[player.table[i]], Prefix(player.tokens, i + 1))
          << "a wrong block was found";
    }
    // What a living sequence has published must be found.
    for (const Player& other : players_) {
      const int64_t known = std::min<int64_t>(other.num_published * kBlockSize, max_tokens);
      int64_t equal = 0;
      while (equal < known && equal < std::ssize(player.tokens) &&
             other.tokens[equal] == player.tokens[equal]) {
        ++equal;
      }
      if (caching_) ASSERT_GE(found, equal / kBlockSize * kBlockSize);
    }
    Extend(player);
  }

  void Extend(Player& player) {
    const size_t extra = player.table.empty() ? 0 : random_() % 5;
    Tokens tokens = player.tokens;
    for (size_t i = 0; i < extra; ++i) tokens.push_back(static_cast<int32_t>(random_() % 2));
    const BlockTable before = player.table;
    const auto wanted = (tokens.size() + kBlockSize - 1) / kBlockSize;
    const auto missing = static_cast<int64_t>(wanted) - std::ssize(before);
    const bool fits = missing <= pool_.num_free();
    ASSERT_EQ(pool_.Grow(player.table, std::ssize(tokens)), fits);
    if (!fits) {
      ++refusals_;
      ASSERT_EQ(player.table, before);
      return;
    }
    ASSERT_EQ(player.table.size(), wanted);
    player.tokens = tokens;
    for (size_t i = static_cast<size_t>(player.num_published); i < player.table.size(); ++i) {
      const size_t end = std::min(tokens.size(), (i + 1) * kBlockSize);
      contents_[player.table[i]] =
          Tokens(tokens.begin(), tokens.begin() + static_cast<int64_t>(end));
    }
  }

  void Publish(Player& player) {
    if (player.table.size() * kBlockSize < player.tokens.size()) return;
    const auto computed = static_cast<int64_t>(random_() % (player.tokens.size() + 1));
    const int64_t before = player.num_published;
    pool_.Publish(player.tokens, computed, player.table, player.num_published);
    ASSERT_EQ(player.num_published, caching_ ? std::max(before, computed / kBlockSize) : 0);
    for (int64_t i = 0; i < player.num_published; ++i) {
      ASSERT_EQ(contents_[player.table[i]], Prefix(player.tokens, i + 1))
          << "a wrong block was shared";
    }
  }

  void Release(Player& player) {
    pool_.Release(player.table);
    player = {};
  }

  void CheckOwners() {
    std::map<int32_t, int> owners;
    for (const Player& player : players_) {
      for (const int32_t block : player.table) ++owners[block];
      ASSERT_EQ(std::set(player.table.begin(), player.table.end()).size(), player.table.size());
    }
    ASSERT_EQ(pool_.num_free(), kNumBlocks - std::ssize(owners));
    for (const Player& player : players_) {
      for (int64_t i = player.num_published; i < std::ssize(player.table); ++i) {
        ASSERT_EQ(owners[player.table[i]], 1) << "a block that is still written is shared";
      }
    }
  }

  std::mt19937 random_;
  BlockPool pool_;
  const bool caching_;
  std::vector<Player> players_ = std::vector<Player>(6);
  std::map<int32_t, Tokens> contents_;
  int64_t hits_ = 0;
  int64_t refusals_ = 0;
};

TEST(BlockPool, AgreesWithAnOracleOverRandomOperations) {
  for (const bool caching : {true, false}) {
    Oracle oracle(caching ? 1 : 2, caching);
    for (int i = 0; i < 100'000 && !testing::Test::HasFatalFailure(); ++i) oracle.RunOperation();
    oracle.ReleaseAll();
    EXPECT_GT(oracle.refusals(), 1000);
    EXPECT_EQ(oracle.hits() > 1000, caching);
  }
}

}  // namespace
}  // namespace shoal
