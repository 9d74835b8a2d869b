#include "server/service/text_assembler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tokenizer/deployed_tokenizer.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Part = TextAssembler::Part;

/// The id of the token that is exactly `bytes`.
int32_t TokenOf(const std::string& bytes) {
  for (int32_t id = 0; id < DeployedTokenizer().vocab_size(); ++id) {
    if (DeployedTokenizer().TokenBytes(id) == bytes) return id;
  }
  ADD_FAILURE() << "no token for " << bytes;
  return 0;
}

GenerationDelta::Token Token(const std::string& bytes) {
  GenerationDelta::Token token;
  token.token_id = TokenOf(bytes);
  token.bytes = bytes;
  return token;
}

std::vector<std::string> Bytes(const GenerationDelta& delta) {
  std::vector<std::string> bytes;
  for (const auto& token : delta.tokens) bytes.push_back(token.bytes);
  return bytes;
}

std::vector<size_t> Offsets(const GenerationDelta& delta) {
  std::vector<size_t> offsets;
  for (const auto& token : delta.tokens) offsets.push_back(token.text_offset);
  return offsets;
}

TextAssembler Assembler(std::vector<std::string> stop, bool strip_leading_space = false) {
  return {&DeployedTokenizer(), /*skip_special_tokens=*/true, strip_leading_space, std::move(stop)};
}

GenerationDelta Take(TextAssembler& assembler) {
  GenerationDelta delta;
  assembler.Take(&delta);
  return delta;
}

/// All text of `pieces`, each a token, in one delta.
GenerationDelta Assemble(TextAssembler assembler, const std::vector<std::string>& pieces) {
  for (const std::string& piece : pieces) assembler.Push(Token(piece), Part::kOutput);
  assembler.Finish();
  return Take(assembler);
}

TEST(TextAssembler, HoldsBackWhatMayBeginAStopString) {
  TextAssembler assembler = Assembler({"STOP"});
  assembler.Push(Token("a"), Part::kOutput);
  assembler.Push(Token("S"), Part::kOutput);
  assembler.Push(Token("T"), Part::kOutput);
  GenerationDelta delta = Take(assembler);
  EXPECT_EQ(delta.text, "a");
  EXPECT_THAT(Bytes(delta), ElementsAre("a"));

  assembler.Push(Token("a"), Part::kOutput);
  delta = Take(assembler);
  EXPECT_EQ(delta.text, "STa");
  EXPECT_THAT(Bytes(delta), ElementsAre("S", "T", "a"));
  EXPECT_THAT(Offsets(delta), ElementsAre(1, 2, 3));
}

TEST(TextAssembler, CutsAtAStopStringAcrossTokens) {
  TextAssembler assembler = Assembler({"never", "STOP"});
  for (const char* piece : {"a", "S", "T", "O", "P", "b"}) {
    assembler.Push(Token(piece), Part::kOutput);
  }
  assembler.Finish();
  const GenerationDelta delta = Take(assembler);
  EXPECT_EQ(delta.text, "a");
  EXPECT_THAT(Bytes(delta), ElementsAre("a"));
  ASSERT_NE(assembler.stop(), nullptr);
  EXPECT_EQ(*assembler.stop(), "STOP");
}

TEST(TextAssembler, ReleasesWhatWasHeldBackAtTheEnd) {
  const GenerationDelta delta = Assemble(Assembler({"STOP"}), {"S", "T"});
  EXPECT_EQ(delta.text, "ST");
  EXPECT_THAT(Bytes(delta), ElementsAre("S", "T"));
}

TEST(TextAssembler, CutsWhereTheFirstStopStringIsComplete) {
  EXPECT_EQ(Assemble(Assembler({"bcd", "c"}), {"a", "b", "c", "d"}).text, "ab");
  EXPECT_EQ(Assemble(Assembler({"c", "bc"}), {"a", "b", "c", "d"}).text, "a");
}

TEST(TextAssembler, CutsAllTheSameHoweverTheTextFallsIntoTokens) {
  const std::vector<std::string> stop = {"he e", "th", "end of"};
  const std::string text = " of hhe en then";
  for (const char* word : {" of", " then", "hhe", " en"}) {
    const std::vector<int32_t> ids =
        DeployedTokenizer().Encode(word + text, Tokenizer::SpecialText::kAsPlainText);
    std::vector<std::string> whole, single;
    for (const int32_t id : ids) whole.emplace_back(DeployedTokenizer().TokenBytes(id));
    for (const char c : word + text) single.emplace_back(1, c);
    EXPECT_EQ(Assemble(Assembler(stop), whole).text, Assemble(Assembler(stop), single).text)
        << word;
  }
}

TEST(TextAssembler, LooksForStopsInTheTextThatIsSeen) {
  const GenerationDelta delta =
      Assemble(Assembler({" a"}, /*strip_leading_space=*/true), {" ", "a"});
  EXPECT_EQ(delta.text, "a");
}

TEST(TextAssembler, StripsOneLeadingSpaceOnly) {
  EXPECT_EQ(Assemble(Assembler({}, true), {" ", " ", "a", " "}).text, " a ");
  EXPECT_EQ(Assemble(Assembler({}, true), {"a", " ", "a"}).text, "a a");
  EXPECT_EQ(Assemble(Assembler({}, false), {" ", "a"}).text, " a");
}

TEST(TextAssembler, NeverGivesHalfACodePoint) {
  TextAssembler assembler = Assembler({});
  assembler.Push(Token("\xC3"), Part::kOutput);
  EXPECT_EQ(Take(assembler).text, "");
  assembler.Push(Token("\xA9"), Part::kOutput);
  assembler.Push(Token("a"), Part::kOutput);
  GenerationDelta delta = Take(assembler);
  EXPECT_EQ(delta.text, "\u00E9a");
  EXPECT_THAT(Offsets(delta), ElementsAre(0, 1));  // code points, not bytes

  assembler.Push(Token("\xC3"), Part::kOutput);
  assembler.Finish();
  EXPECT_EQ(Take(assembler).text, "\uFFFD");
}

TEST(TextAssembler, FindsNoStopStringInTheEchoedPrompt) {
  TextAssembler assembler = Assembler({"ab", "b"});
  for (const char* piece : {"a", "b", "a"}) assembler.Push(Token(piece), Part::kPrompt);
  EXPECT_EQ(Take(assembler).text, "aba");
  assembler.Push(Token("c"), Part::kOutput);
  EXPECT_EQ(Take(assembler).text, "c");
  assembler.Push(Token("b"), Part::kOutput);
  EXPECT_EQ(Take(assembler).text, "");
  EXPECT_EQ(*assembler.stop(), "b");
}

TEST(TextAssembler, StopTokenHasNoTextButCounts) {
  TextAssembler assembler = Assembler({});
  assembler.Push(Token("a"), Part::kOutput);
  assembler.Push(Token("b"), Part::kStopToken);
  assembler.Finish();
  const GenerationDelta delta = Take(assembler);
  EXPECT_EQ(delta.text, "a");
  EXPECT_THAT(Bytes(delta), ElementsAre("a", "b"));
  EXPECT_THAT(Offsets(delta), ElementsAre(0, 1));
}

TEST(TextAssembler, TokenThatTheCutGoesThroughIsKept) {
  TextAssembler assembler = Assembler({"e"});
  assembler.Push(Token(" the"), Part::kOutput);
  const GenerationDelta delta = Take(assembler);
  EXPECT_EQ(delta.text, " th");
  EXPECT_THAT(Bytes(delta), ElementsAre(" the"));
}

}  // namespace
}  // namespace shoal
