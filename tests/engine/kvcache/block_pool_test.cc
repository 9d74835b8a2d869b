#include "engine/kvcache/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string_view>
#include <vector>

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;
constexpr std::string_view kDomain = "some model";

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
  pool.Publish(kDomain, tokens, 5, first, num_published);
  EXPECT_EQ(num_published, 2);

  BlockTable second;
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 5, second), 4);
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
  pool.Publish(kDomain, tokens, 4, first, num_published);
  BlockTable second;
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 3, second), 2);
  pool.Release(second);
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 0, second), 0);
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, -1, second), 0);
}

TEST(BlockPool, PublishesOnlyComputedFullBlocks) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable first;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(first, 4));
  pool.Publish(kDomain, tokens, 3, first, num_published);
  EXPECT_EQ(num_published, 1);
  BlockTable second;
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 4, second), 2);
}

TEST(BlockPool, KeepsOneOfTwoEqualBlocks) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable first, second;
  int64_t first_published = 0, second_published = 0;
  ASSERT_TRUE(pool.Grow(first, 4));
  ASSERT_TRUE(pool.Grow(second, 4));
  EXPECT_EQ(pool.num_free(), 4);
  pool.Publish(kDomain, tokens, 4, first, first_published);
  pool.Publish(kDomain, tokens, 4, second, second_published);
  EXPECT_EQ(second, first);
  EXPECT_EQ(pool.num_free(), 6);
}

TEST(BlockPool, ReclaimsTheLeastRecentlyUsedPrefix) {
  BlockPool pool(2, 2, true);
  const auto publish = [&pool](const Tokens& tokens) {
    BlockTable table;
    int64_t num_published = 0;
    pool.MatchPrefix(kDomain, tokens, 2, table);
    ASSERT_TRUE(pool.Grow(table, 2));
    pool.Publish(kDomain, tokens, 2, table, num_published);
    pool.Release(table);
  };
  const auto finds = [&pool](const Tokens& tokens) {
    BlockTable table;
    const int64_t found = pool.MatchPrefix(kDomain, tokens, 2, table);
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
  pool.Publish(kDomain, tokens, 6, table, num_published);
  pool.Release(table);
  BlockTable other;
  ASSERT_TRUE(pool.Grow(other, 2));
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 6, table), 4);
}

TEST(BlockPool, ReusesUnpublishedBlocksBeforePublishedOnes) {
  BlockPool pool(3, 2, true);
  const Tokens tokens = {1, 2};
  BlockTable table, other;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(table, 2));
  pool.Publish(kDomain, tokens, 2, table, num_published);
  pool.Release(table);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(pool.Grow(other, 4));
    pool.Release(other);
  }
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 2, table), 2);
}

TEST(BlockPool, FindsNothingWithoutPrefixCaching) {
  BlockPool pool(4, 2, false);
  const Tokens tokens = {1, 2};
  BlockTable first, second;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(first, 2));
  pool.Publish(kDomain, tokens, 2, first, num_published);
  EXPECT_EQ(pool.MatchPrefix(kDomain, tokens, 2, second), 0);
}

TEST(BlockPool, CountsLookups) {
  BlockPool pool(4, 2, true);
  pool.CountLookup(10, 4);
  pool.CountLookup(3, 0);
  EXPECT_EQ(pool.stats().prefix_queries_tokens, 13);
  EXPECT_EQ(pool.stats().prefix_hits_tokens, 4);
}

/// A sequence of blocks with these tokens, all published.
struct Published {
  Published(BlockPool& pool, const Tokens& tokens, std::string_view domain = kDomain) {
    pool.MatchPrefix(domain, tokens, std::ssize(tokens), table);
    EXPECT_TRUE(pool.Grow(table, std::ssize(tokens)));
    pool.Publish(domain, tokens, std::ssize(tokens), table, num_published);
  }

  BlockTable table;
  int64_t num_published = 0;
};

TEST(BlockPool, SaysHowManyBlocksATableLacks) {
  BlockPool pool(8, 4, true);
  BlockTable table;
  EXPECT_EQ(pool.NumMissing(table, 0), 0);
  EXPECT_EQ(pool.NumMissing(table, 9), 3);
  ASSERT_TRUE(pool.Grow(table, 8));
  EXPECT_EQ(pool.NumMissing(table, 9), 1);
  EXPECT_EQ(pool.NumMissing(table, 8), 0);
  EXPECT_EQ(pool.NumMissing(table, 1), 0);
}

TEST(BlockPool, ForksOwnTheSameBlocks) {
  BlockPool pool(8, 2, true);
  BlockTable leader;
  ASSERT_TRUE(pool.Grow(leader, 5));
  BlockTable fork = pool.Fork(leader);
  EXPECT_EQ(fork, leader);
  EXPECT_EQ(pool.num_free(), 5);
  EXPECT_EQ(pool.stats().num_shared, 3);
  EXPECT_EQ(pool.NumOwnedAlone(leader), 0);
  ASSERT_TRUE(pool.Grow(fork, 7));
  EXPECT_EQ(pool.NumOwnedAlone(fork), 1);
  pool.Release(leader);
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_EQ(pool.stats().num_shared, 0);
  EXPECT_EQ(pool.NumOwnedAlone(fork), 4);
}

TEST(BlockPool, ReplacesASharedBlockBeforeItIsWritten) {
  BlockPool pool(3, 2, true);
  BlockTable leader;
  ASSERT_TRUE(pool.Grow(leader, 3));
  BlockTable fork = pool.Fork(leader);
  EXPECT_TRUE(pool.NeedsCopy(fork, 3));
  EXPECT_FALSE(pool.NeedsCopy(fork, 4)) << "the table does not have that position yet";

  BlockCopy copy;
  ASSERT_TRUE(pool.Replace(fork, 3, &copy));
  EXPECT_EQ(copy.source, leader[1]);
  EXPECT_EQ(copy.target, fork[1]);
  EXPECT_NE(fork[1], leader[1]);
  EXPECT_EQ(fork[0], leader[0]);
  EXPECT_FALSE(pool.NeedsCopy(fork, 3));
  EXPECT_FALSE(pool.NeedsCopy(leader, 3));
  EXPECT_TRUE(pool.NeedsCopy(leader, 1));
  EXPECT_EQ(pool.num_free(), 0);
}

TEST(BlockPool, ReplacesNothingWhenNoBlockIsFree) {
  BlockPool pool(1, 2, true);
  BlockTable leader;
  ASSERT_TRUE(pool.Grow(leader, 1));
  BlockTable fork = pool.Fork(leader);
  BlockCopy copy;
  EXPECT_FALSE(pool.Replace(fork, 1, &copy));
  EXPECT_EQ(fork, leader);
  EXPECT_TRUE(pool.NeedsCopy(fork, 1));
}

TEST(BlockPool, ABlockPublishedByOneOwnerIsTheOthersToo) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable leader;
  ASSERT_TRUE(pool.Grow(leader, 4));
  BlockTable fork = pool.Fork(leader);
  const BlockTable before = fork;
  int64_t leader_published = 0, fork_published = 0;
  pool.Publish(kDomain, tokens, 4, leader, leader_published);
  pool.Publish(kDomain, tokens, 4, fork, fork_published);
  EXPECT_EQ(fork_published, 2);
  EXPECT_EQ(leader, before);
  EXPECT_EQ(fork, before);
}

TEST(BlockPool, AForkOutlivesKnownBlocksThatOnlyTheOtherTook) {
  BlockPool pool(5, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  BlockTable leader;
  ASSERT_TRUE(pool.Grow(leader, 4));
  BlockTable fork = pool.Fork(leader);
  Published first(pool, {1, 2});
  int64_t leader_published = 0, fork_published = 0;
  // Now the fork owns the second block, but not the one that stands before it in the index.
  pool.Publish(kDomain, tokens, 4, leader, leader_published);
  EXPECT_EQ(leader, (BlockTable{first.table[0], fork[1]}));
  pool.Release(first.table);
  pool.Release(leader);
  BlockTable other;
  ASSERT_TRUE(pool.Grow(other, 6));
  EXPECT_EQ(pool.FindPrefix(kDomain, tokens, 4), 0);
  pool.Publish(kDomain, tokens, 4, fork, fork_published);
  EXPECT_EQ(pool.FindPrefix(kDomain, tokens, 4), 4);
}

TEST(BlockPool, FindsAPrefixWithoutTakingIt) {
  BlockPool pool(2, 2, true);
  Published old(pool, {1, 1}), young(pool, {2, 2});
  pool.Release(old.table);
  pool.Release(young.table);
  EXPECT_EQ(pool.FindPrefix(kDomain, Tokens{1, 1, 5}, 3), 2);
  EXPECT_EQ(pool.FindPrefix(kDomain, Tokens{1, 1, 5}, 1), 0);
  EXPECT_EQ(pool.num_free(), 2);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 1));
  EXPECT_EQ(pool.FindPrefix(kDomain, Tokens{1, 1}, 2), 0) << "to be found is no use";
  EXPECT_EQ(pool.FindPrefix(kDomain, Tokens{2, 2}, 2), 2);
}

TEST(BlockPool, SharesNothingBetweenDomains) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4};
  Published mine(pool, tokens, "mine");
  EXPECT_EQ(pool.FindPrefix("theirs", tokens, 4), 0);
  EXPECT_EQ(pool.FindPrefix("", tokens, 4), 0);
  Published theirs(pool, tokens, "theirs");
  EXPECT_EQ(pool.FindPrefix("theirs", tokens, 4), 4);
  EXPECT_EQ(pool.NumOwnedAlone(mine.table), 2);
  EXPECT_EQ(pool.NumOwnedAlone(theirs.table), 2);
}

TEST(BlockPool, ForgetsEveryPrefixWhenReset) {
  BlockPool pool(4, 2, true);
  const Tokens tokens = {1, 2, 3, 4, 5, 6};
  Published owned(pool, tokens), cached(pool, {7, 8});
  pool.Release(cached.table);
  EXPECT_EQ(pool.stats().num_cached, 1);
  pool.ResetPrefixCache();
  EXPECT_EQ(pool.stats().num_cached, 0);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.FindPrefix(kDomain, tokens, 6), 0);
  EXPECT_EQ(pool.FindPrefix(kDomain, Tokens{7, 8}, 2), 0);
  pool.Release(owned.table);
  EXPECT_EQ(pool.num_free(), 4);
  EXPECT_EQ(pool.stats().num_cached, 0);
}

TEST(BlockPool, AfterAResetOnlyNewSequencesPublish) {
  BlockPool pool(8, 2, true);
  const Tokens tokens = {1, 2, 3, 4, 5, 6};
  BlockTable old;
  int64_t num_published = 0;
  ASSERT_TRUE(pool.Grow(old, 6));
  pool.Publish(kDomain, tokens, 2, old, num_published);
  pool.ResetPrefixCache();
  pool.Publish(kDomain, tokens, 6, old, num_published);
  EXPECT_EQ(num_published, 1);
  EXPECT_EQ(pool.FindPrefix(kDomain, tokens, 6), 0);
  Published young(pool, tokens);
  EXPECT_EQ(young.num_published, 3);
  EXPECT_EQ(pool.FindPrefix(kDomain, tokens, 6), 6);
  pool.Publish(kDomain, tokens, 6, old, num_published);
  EXPECT_EQ(num_published, 1);
}

TEST(BlockPool, CountsCachedAndSharedBlocks) {
  BlockPool pool(4, 2, true);
  Published first(pool, {1, 2, 3, 4});
  Published second(pool, {1, 2, 5, 6});
  EXPECT_EQ(pool.stats().num_shared, 1);
  EXPECT_EQ(pool.stats().num_cached, 0);
  pool.Release(first.table);
  EXPECT_EQ(pool.stats().num_shared, 0);
  EXPECT_EQ(pool.stats().num_cached, 1);
  pool.Release(second.table);
  EXPECT_EQ(pool.stats().num_cached, 3);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 4));  // the one that was never used, and the end of one prefix
  EXPECT_EQ(pool.stats().num_cached, 2);
}

TEST(BlockPoolDeathTest, NoticesABlockGivenBackTwice) {
  BlockPool pool(4, 2, true);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 2));
  BlockTable copy = table;
  pool.Release(table);
  EXPECT_DEATH(pool.Release(copy), "given back twice");
}

TEST(BlockPoolDeathTest, RefusesToReplaceABlockWithOneOwner) {
  BlockPool pool(4, 2, true);
  BlockTable table;
  ASSERT_TRUE(pool.Grow(table, 2));
  BlockCopy copy;
  EXPECT_DEATH(pool.Replace(table, 0, &copy), "has one owner");
}

}  // namespace
}  // namespace shoal
