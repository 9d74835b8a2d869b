#include "engine/kvcache/prefix_index.h"

#include <gtest/gtest.h>

#include <vector>

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;

/// An index of four blocks of two tokens that inserts and finds by the block before.
struct SmallIndex : PrefixIndex {
  SmallIndex() : PrefixIndex(4, 2) {}

  PrefixId After(int32_t parent) const { return parent == kNone ? Root("") : PrefixOf(parent); }
  int32_t FindAfter(int32_t parent, const Tokens& tokens) const {
    return Find(After(parent), tokens);
  }
  int32_t InsertAfter(int32_t parent, const Tokens& tokens, int32_t block) {
    return Insert("", After(parent), tokens, block);
  }
};

constexpr int32_t kNone = PrefixIndex::kNone;

TEST(PrefixIndex, FindsWhatWasInserted) {
  SmallIndex index;
  EXPECT_EQ(index.InsertAfter(kNone, {1, 2}, 3), 3);
  EXPECT_EQ(index.FindAfter(kNone, {1, 2}), 3);
  EXPECT_EQ(index.FindAfter(kNone, {2, 1}), kNone);
  EXPECT_TRUE(index.Contains(3));
  EXPECT_FALSE(index.Contains(0));
}

TEST(PrefixIndex, TellsEqualTokensAfterDifferentPrefixesApart) {
  SmallIndex index;
  index.InsertAfter(kNone, {1, 2}, 0);
  index.InsertAfter(kNone, {3, 4}, 1);
  index.InsertAfter(0, {5, 6}, 2);
  EXPECT_EQ(index.FindAfter(0, {5, 6}), 2);
  EXPECT_EQ(index.FindAfter(1, {5, 6}), kNone);
  EXPECT_EQ(index.FindAfter(kNone, {5, 6}), kNone);
}

TEST(PrefixIndex, KeepsTheFirstOfTwoEqualBlocks) {
  SmallIndex index;
  index.InsertAfter(kNone, {1, 2}, 0);
  EXPECT_EQ(index.InsertAfter(kNone, {1, 2}, 1), 0);
  EXPECT_FALSE(index.Contains(1));
}

TEST(PrefixIndex, TellsDomainsApart) {
  PrefixIndex index(4, 2);
  index.Insert("a", PrefixIndex::kUnknown, Tokens{1, 2}, 0);
  EXPECT_EQ(index.Root("b"), PrefixIndex::kUnknown);
  EXPECT_EQ(index.Insert("b", PrefixIndex::kUnknown, Tokens{1, 2}, 1), 1);
  EXPECT_EQ(index.Find(index.Root("a"), Tokens{1, 2}), 0);
  EXPECT_EQ(index.Find(index.Root("b"), Tokens{1, 2}), 1);
}

TEST(PrefixIndex, ForgetsADomainWithTheLastOfItsBlocks) {
  PrefixIndex index(4, 2);
  index.Insert("a", PrefixIndex::kUnknown, Tokens{1, 2}, 0);
  index.Insert("a", index.PrefixOf(0), Tokens{3, 4}, 1);
  const PrefixIndex::PrefixId root = index.Root("a");
  index.Erase(1);
  EXPECT_EQ(index.Root("a"), root);
  index.Erase(0);
  EXPECT_EQ(index.Root("a"), PrefixIndex::kUnknown);
  index.Insert("a", PrefixIndex::kUnknown, Tokens{1, 2}, 0);
  EXPECT_NE(index.Root("a"), root);
}

TEST(PrefixIndex, ForgetsErasedBlocks) {
  SmallIndex index;
  index.InsertAfter(kNone, {1, 2}, 0);
  index.InsertAfter(0, {3, 4}, 1);
  index.Erase(1);
  index.Erase(0);
  EXPECT_EQ(index.FindAfter(kNone, {1, 2}), kNone);
  EXPECT_EQ(index.InsertAfter(kNone, {9, 9}, 0), 0);
  EXPECT_EQ(index.FindAfter(0, {3, 4}), kNone);
}

TEST(PrefixIndex, DoesNotFindABlockAfterAnErasedOneEvenIfItsNumberIsUsedAgain) {
  SmallIndex index;
  index.InsertAfter(kNone, {1, 2}, 0);
  index.InsertAfter(0, {3, 4}, 1);
  index.Erase(0);
  index.InsertAfter(kNone, {9, 9}, 0);
  EXPECT_EQ(index.FindAfter(0, {3, 4}), kNone);
  index.Erase(0);
  index.InsertAfter(kNone, {1, 2}, 0);
  EXPECT_EQ(index.FindAfter(0, {3, 4}), kNone);
  EXPECT_EQ(index.InsertAfter(0, {3, 4}, 1), 1) << "it may be named again";
  EXPECT_EQ(index.FindAfter(0, {3, 4}), 1);
  EXPECT_EQ(index.size(), 2u);
}

TEST(PrefixIndex, ForgetsEverythingWhenCleared) {
  SmallIndex index;
  index.InsertAfter(kNone, {1, 2}, 0);
  index.InsertAfter(0, {3, 4}, 1);
  index.Clear();
  EXPECT_EQ(index.Root(""), PrefixIndex::kUnknown);
  EXPECT_FALSE(index.Contains(0));
  EXPECT_FALSE(index.Contains(1));
  EXPECT_EQ(index.InsertAfter(kNone, {1, 2}, 1), 1);
  EXPECT_EQ(index.FindAfter(kNone, {1, 2}), 1);
}

TEST(PrefixIndexDeathTest, RefusesASecondContentForABlock) {
  SmallIndex index;
  index.InsertAfter(kNone, {1, 2}, 0);
  EXPECT_DEATH(index.InsertAfter(kNone, {3, 4}, 0), "block 0 holds other tokens");
}

}  // namespace
}  // namespace shoal
