#include "engine/kvcache/prefix_index.h"

#include <gtest/gtest.h>

#include <vector>

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;

TEST(PrefixIndex, FindsWhatWasInserted) {
  PrefixIndex index(4, 2);
  EXPECT_EQ(index.Insert(PrefixIndex::kNone, Tokens{1, 2}, 3), 3);
  EXPECT_EQ(index.Find(PrefixIndex::kNone, Tokens{1, 2}), 3);
  EXPECT_EQ(index.Find(PrefixIndex::kNone, Tokens{2, 1}), PrefixIndex::kNone);
  EXPECT_TRUE(index.Contains(3));
  EXPECT_FALSE(index.Contains(0));
}

TEST(PrefixIndex, TellsEqualTokensAfterDifferentPrefixesApart) {
  PrefixIndex index(4, 2);
  index.Insert(PrefixIndex::kNone, Tokens{1, 2}, 0);
  index.Insert(PrefixIndex::kNone, Tokens{3, 4}, 1);
  index.Insert(0, Tokens{5, 6}, 2);
  EXPECT_EQ(index.Find(0, Tokens{5, 6}), 2);
  EXPECT_EQ(index.Find(1, Tokens{5, 6}), PrefixIndex::kNone);
  EXPECT_EQ(index.Find(PrefixIndex::kNone, Tokens{5, 6}), PrefixIndex::kNone);
}

TEST(PrefixIndex, KeepsTheFirstOfTwoEqualBlocks) {
  PrefixIndex index(4, 2);
  index.Insert(PrefixIndex::kNone, Tokens{1, 2}, 0);
  EXPECT_EQ(index.Insert(PrefixIndex::kNone, Tokens{1, 2}, 1), 0);
  EXPECT_FALSE(index.Contains(1));
}

TEST(PrefixIndex, ForgetsErasedBlocks) {
  PrefixIndex index(4, 2);
  index.Insert(PrefixIndex::kNone, Tokens{1, 2}, 0);
  index.Insert(0, Tokens{3, 4}, 1);
  index.Erase(1);
  index.Erase(0);
  EXPECT_EQ(index.Find(PrefixIndex::kNone, Tokens{1, 2}), PrefixIndex::kNone);
  EXPECT_EQ(index.Insert(PrefixIndex::kNone, Tokens{9, 9}, 0), 0);
  EXPECT_EQ(index.Find(0, Tokens{3, 4}), PrefixIndex::kNone);
}

TEST(PrefixIndexDeathTest, RefusesToEraseABlockBeforeItsChildren) {
  PrefixIndex index(4, 2);
  index.Insert(PrefixIndex::kNone, Tokens{1, 2}, 0);
  index.Insert(0, Tokens{3, 4}, 1);
  EXPECT_DEATH(index.Erase(0), "erased before its 1 children");
}

}  // namespace
}  // namespace shoal
