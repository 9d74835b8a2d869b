#include "tokenizer/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

nlohmann::json ByteLevel() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
}

nlohmann::json Split(const std::string& pattern, const std::string& behavior, bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", behavior},
          {"invert", invert}};
}

absl::StatusOr<std::vector<std::string>> Pieces(const std::vector<nlohmann::json>& steps,
                                                const std::string& text) {
  const nlohmann::json sequence = {{"type", "Sequence"}, {"pretokenizers", steps}};
  ASSIGN_OR_RETURN(const PreTokenizer pre_tokenizer,
                   PreTokenizer::FromJson({&sequence, "pre_tokenizer"}));
  PreTokenizer::Workspace workspace;
  const auto pieces = pre_tokenizer.Split(text, &workspace);
  return std::vector<std::string>(pieces.begin(), pieces.end());
}

std::vector<std::string> SplitBy(const nlohmann::json& step, const std::string& text) {
  auto pieces = Pieces({step, ByteLevel()}, text);
  EXPECT_TRUE(pieces.ok()) << pieces.status();
  return *std::move(pieces);
}

std::string Refusal(const nlohmann::json& step) {
  return std::string(Pieces({step, ByteLevel()}, "").status().message());
}

TEST(PreTokenizer, TreatsMatchesAsTheBehaviorSays) {
  const std::string text = "the--final-countdown";
  EXPECT_THAT(SplitBy(Split("-", "Isolated"), text),
              ElementsAre("the", "-", "-", "final", "-", "countdown"));
  EXPECT_THAT(SplitBy(Split("-", "Removed"), text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(SplitBy(Split("-", "MergedWithPrevious"), text),
              ElementsAre("the-", "-", "final-", "countdown"));
  EXPECT_THAT(SplitBy(Split("-", "MergedWithNext"), text),
              ElementsAre("the", "-", "-final", "-countdown"));
  EXPECT_THAT(SplitBy(Split("-", "Contiguous"), text),
              ElementsAre("the", "--", "final", "-", "countdown"));
}

TEST(PreTokenizer, InvertsMatches) {
  EXPECT_THAT(SplitBy(Split("\\d+", "Removed", true), "a12b3"), ElementsAre("12", "3"));
  EXPECT_THAT(SplitBy(Split("\\d+", "MergedWithPrevious", true), "a12b3"),
              ElementsAre("a", "12b", "3"));
}

TEST(PreTokenizer, TakesStringPatternsLiterally) {
  nlohmann::json step = Split("", "Isolated");
  step["pattern"] = {{"String", ".+"}};
  EXPECT_THAT(SplitBy(step, "ab.+c"), ElementsAre("ab", ".+", "c"));
}

TEST(PreTokenizer, CutsAtEmptyMatches) {
  EXPECT_THAT(SplitBy(Split("(?=[A-Zé])", "Isolated"), "oneTwoéThree"),
              ElementsAre("one", "Two", "é", "Three"));
}

TEST(PreTokenizer, MatchesDollarBeforeEachLineFeed) {
  EXPECT_THAT(SplitBy(Split("b$", "Isolated"), "ab\ncb\n"),
              ElementsAre("a", "b", "\nc", "b", "\n"));
}

// U+180E is no white space for Unicode since 6.3, though PCRE2's \s takes it.
TEST(PreTokenizer, KnowsUnicodesWhiteSpace) {
  const std::string spaces =
      "\t\n\v\f\r \u0085\u00A0\u1680\u2000\u200A\u2028\u2029\u202F\u205F\u3000";
  const std::string others = "\u180E\u200B\u2060\uFEFF\x1C";
  for (const std::string pattern : {"\\s+", "[\\s]+", "[^\\S]+"}) {
    EXPECT_THAT(SplitBy(Split(pattern, "Isolated"), others + spaces + others),
                ElementsAre(others, spaces, others))
        << pattern;
  }
  EXPECT_THAT(SplitBy(Split("\\S+", "Removed"), others + spaces), ElementsAre(spaces));
}

TEST(PreTokenizer, FindsLaterWhiteSpaceAfterAFailedRun) {
  EXPECT_THAT(SplitBy(Split("\\s+$", "Isolated"), "a   b  "), ElementsAre("a   b", "  "));
  EXPECT_THAT(SplitBy(Split("\\s+x", "Isolated"), "   y  x"), ElementsAre("   y", "  x"));
  EXPECT_THAT(SplitBy(Split("\\s+?", "Isolated"), "a  "), ElementsAre("a", " ", " "));
}

TEST(PreTokenizer, CutsEveryUnicodeNumber) {
  const nlohmann::json individual = {{"type", "Digits"}, {"individual_digits", true}};
  const nlohmann::json together = {{"type", "Digits"}, {"individual_digits", false}};
  EXPECT_THAT(SplitBy(individual, "a12½Ⅷ٣b"), ElementsAre("a", "1", "2", "½", "Ⅷ", "٣", "b"));
  EXPECT_THAT(SplitBy(together, "a12½Ⅷ٣b"), ElementsAre("a", "12½Ⅷ٣", "b"));
}

TEST(PreTokenizer, SplitsAsGpt2) {
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
  const auto pieces = Pieces({byte_level}, "it's  2 o'clock!\n");
  ASSERT_TRUE(pieces.ok()) << pieces.status();
  EXPECT_THAT(*pieces, ElementsAre(" it", "'s", " ", " 2", " o", "'", "clock", "!", "\n"));
}

TEST(PreTokenizer, LeavesUnsplitWhatIsBeyondTheMatchLimits) {
  // Exponential in the number of letters.
  const std::string text = std::string(40, 'a') + "bc";
  EXPECT_THAT(SplitBy(Split("(?:a|aa)+(?=b)c", "Isolated"), text), ElementsAre(text));
}

TEST(PreTokenizer, RefusesByName) {
  EXPECT_THAT(Refusal(Split("a", "Sideways")),
              HasSubstr("pre_tokenizer.pretokenizers[0].behavior is \"Sideways\""));
  EXPECT_THAT(Refusal({{"type", "Metaspace"}}),
              HasSubstr("pretokenizers[0].type is \"Metaspace\""));
  EXPECT_THAT(Refusal({{"type", "Digits"}, {"individual_digits", 1}}),
              HasSubstr("individual_digits is 1"));
  EXPECT_THAT(Refusal(Split("", "Isolated")), HasSubstr("pattern"));
  EXPECT_THAT(Refusal(Split("[a", "Isolated")), HasSubstr("not valid at byte 2"));
  nlohmann::json prefix = ByteLevel();
  prefix["add_prefix_space"] = true;
  EXPECT_THAT(std::string(Pieces({Split("a", "Isolated"), prefix}, "").status().message()),
              HasSubstr("add_prefix_space"));
  EXPECT_THAT(std::string(Pieces({Split("a", "Isolated")}, "").status().message()),
              HasSubstr("ByteLevel"));
}

// Oniguruma and PCRE2 read these differently.
TEST(PreTokenizer, RefusesConstructsOfAnotherMeaning) {
  for (const std::string pattern : {"\\w", "\\b", "\\h", "\\R", "\\1", "\\", "\\pL", "[a[bc]]",
                                    "[a&&b]", "(?m:.)", "(?<n>a)", "(*F)", "a{1,3}+", "[]a]"}) {
    EXPECT_THAT(Refusal(Split(pattern, "Isolated")),
                HasSubstr("is not supported in a regular expression"))
        << pattern;
  }
}

}  // namespace
}  // namespace shoal
