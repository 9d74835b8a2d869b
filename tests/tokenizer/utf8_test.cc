#include "tokenizer/utf8.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(Utf8, KeepsValidText) {
  for (const std::string text :
       {"", "a", "é", "你", "🦙", "\uFFFF", "\U0010FFFF", "\uD7FF\uE000"}) {
    EXPECT_EQ(ReplaceInvalidUtf8(text), text);
  }
}

// The examples of the Unicode Standard, tables 3-8 to 3-11.
TEST(Utf8, ReplacesEachMaximalSubpart) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(ReplaceInvalidUtf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8, LeavesOutAnIncompleteCodePointAtTheEnd) {
  for (const std::string head : {"\xC3", "\xE4\xBD", "\xF0\x9F\xA6"}) {
    std::string text;
    EXPECT_EQ(AppendValidUtf8("ab" + head, &text), 2u);
    EXPECT_EQ(text, "ab");
    EXPECT_EQ(ReplaceInvalidUtf8("ab" + head), "ab\uFFFD");
  }
}

}  // namespace
}  // namespace shoal
