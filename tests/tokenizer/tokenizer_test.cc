#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/tokenizer/deployed_tokenizer.h"

namespace shoal {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr auto kAsToken = Tokenizer::SpecialText::kAsToken;
constexpr auto kAsPlainText = Tokenizer::SpecialText::kAsPlainText;
constexpr char kBos[] = "<｜begin▁of▁sentence｜>";

void ExpectVectors(const Tokenizer& tokenizer, const std::string& path, size_t count) {
  const auto vectors = nlohmann::json::parse(ReadText(path));
  size_t passed = 0;
  for (const auto& vector : vectors) {
    const auto text = vector["text"].get<std::string>();
    const auto ids = vector["ids"].get<std::vector<int32_t>>();
    const bool same = tokenizer.Encode(text, kAsToken) == ids;
    EXPECT_TRUE(same) << vector.dump();
    EXPECT_EQ(tokenizer.Decode(ids, false), text);
    passed += same;
  }
  std::cout << path << ": " << passed << "/" << vectors.size() << "\n";
  EXPECT_EQ(vectors.size(), count);
}

TEST(Tokenizer, EncodesTheProjectsVectors) {
  ExpectVectors(DeployedTokenizer(), "tests/tokenizer/vectors.json", 75);
}

TEST(Tokenizer, EncodesDeepSeeksVectors) {
  const std::string directory = "../shared/tokenizers/deepseek-llm";
  if (!std::filesystem::exists(directory)) GTEST_SKIP() << directory << " is not here";
  const auto tokenizer = Tokenizer::Load(directory);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectVectors(**tokenizer, directory + "/vectors.json", 46);
  ExpectVectors(**tokenizer, directory + "/vectors_extra.json", 138);
  EXPECT_EQ((*tokenizer)->vocab_size(), 100015);
  EXPECT_EQ((*tokenizer)->bos_id(), 100000);
  EXPECT_EQ((*tokenizer)->eos_id(), 100001);
  EXPECT_TRUE((*tokenizer)->add_bos());
}

TEST(Tokenizer, ReadsTheConfig) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 2048);
  EXPECT_EQ(tokenizer.TokenBytes(tokenizer.bos_id()), kBos);
  EXPECT_EQ(tokenizer.TokenBytes(tokenizer.eos_id()), "<｜end▁of▁sentence｜>");
  EXPECT_TRUE(tokenizer.add_bos());
  EXPECT_THAT(tokenizer.chat_template(), ::testing::StartsWith("{% if not add_generation_prompt"));
}

TEST(Tokenizer, TakesSpecialTextAsTokenOnlyWhenAllowed) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  EXPECT_THAT(tokenizer.Encode(kBos, kAsToken), ElementsAre(tokenizer.bos_id()));
  const std::vector<int32_t> plain = tokenizer.Encode(kBos, kAsPlainText);
  EXPECT_THAT(plain, Each(::testing::Truly([&](int32_t id) { return !tokenizer.IsSpecial(id); })));
  EXPECT_EQ(tokenizer.Decode(plain, true), kBos);
}

TEST(Tokenizer, SkipsSpecialTokensOnRequest) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  const std::vector<int32_t> ids = tokenizer.Encode(std::string(kBos) + "Öl", kAsToken);
  EXPECT_EQ(tokenizer.Decode(ids, true), "Öl");
  EXPECT_EQ(tokenizer.Decode(ids, false), std::string(kBos) + "Öl");
}

// Their letters are those of bytes that UTF-8 never has; they must not come back as such a byte.
TEST(Tokenizer, DecodesAddedLettersLiterally) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  for (const std::string letter :
       {"ø", "ö", "ú", "ÿ", "õ", "÷", "û", "ý", "À", "ù", "Á", "þ", "ü"}) {
    const std::vector<int32_t> ids = tokenizer.Encode(letter, kAsPlainText);
    ASSERT_EQ(ids.size(), 1u) << letter;
    EXPECT_FALSE(tokenizer.IsSpecial(ids[0]));
    EXPECT_EQ(tokenizer.Decode(ids, true), letter);
  }
}

TEST(Tokenizer, EndsHalfACodePointBeforeAnAddedToken) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  std::vector<int32_t> ids =
      tokenizer.Encode("\xE4\xBD\xA0", kAsPlainText);  // one letter, three tokens
  ASSERT_EQ(ids.size(), 3u);
  ids.back() = tokenizer.Encode("ü", kAsPlainText)[0];
  EXPECT_EQ(tokenizer.Decode(ids, true), "\uFFFDü");
}

TEST(Tokenizer, CountsInvalidBytesAsReplacementCharacters) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  EXPECT_EQ(tokenizer.Encode("a\xFF\xE4\xBDz", kAsPlainText),
            tokenizer.Encode("a\uFFFD\uFFFDz", kAsPlainText));
}

TEST(Tokenizer, GivesNothingForIdsOutOfRange) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  for (const int32_t id : {-1, 2048, 1 << 30}) {
    EXPECT_THAT(tokenizer.TokenBytes(id), IsEmpty());
    EXPECT_FALSE(tokenizer.IsSpecial(id));
    EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{id}, false), "");
  }
}

// A quadratic step anywhere would run into the test's time limit.
TEST(Tokenizer, EncodesLongRunsInReasonableTime) {
  constexpr size_t kBytes = 1 << 19;
  for (const std::string unit : {" ", "a", "\n", "<", "你", "\u3000", "\xE4"}) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    if (unit != "\xE4") {
      text +=
          "你";  // white space that does not end the text is the regular expressions' worst case
      EXPECT_TRUE(DeployedTokenizer().Decode(DeployedTokenizer().Encode(text, kAsToken), false) ==
                  text)
          << unit;
    } else {
      EXPECT_EQ(DeployedTokenizer().Encode(text, kAsToken).size(),
                kBytes * DeployedTokenizer().Encode("\uFFFD", kAsToken).size());
    }
  }
}

TEST(Tokenizer, ServesManyThreads) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  const std::string text = ReadText("tokenizer/tokenizer.h");
  const std::vector<int32_t> expected = tokenizer.Encode(text, kAsToken);
  std::vector<std::jthread> threads;
  std::vector<int> equal(4, 0);
  for (int& mine : equal) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) mine += tokenizer.Encode(text, kAsToken) == expected;
    });
  }
  threads.clear();
  EXPECT_THAT(equal, Each(5));
}

}  // namespace
}  // namespace shoal
