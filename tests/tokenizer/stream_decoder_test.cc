#include "tokenizer/stream_decoder.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/tokenizer/deployed_tokenizer.h"
#include "tokenizer/utf8.h"

namespace shoal {
namespace {

TEST(StreamDecoder, PiecesAreValidAndJoinToDecode) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    // Half of the ids are single bytes above 7F, so that broken and whole code points abound.
    std::vector<int32_t> ids(random() % 20);
    for (int32_t& id : ids) id = random() % 2 ? 94 + random() % 149 : random() % 2060 - 2;
    for (const bool skip : {false, true}) {
      StreamDecoder decoder(&tokenizer, skip);
      std::string joined;
      for (const int32_t id : ids) {
        const std::string piece = decoder.Push(id);
        EXPECT_EQ(piece, ReplaceInvalidUtf8(piece));
        joined += piece;
      }
      joined += decoder.Flush();
      ASSERT_EQ(joined, tokenizer.Decode(ids, skip));
    }
  }
}

TEST(StreamDecoder, HoldsBackHalfACodePoint) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  const std::vector<int32_t> ids = tokenizer.Encode("🦙", Tokenizer::SpecialText::kAsPlainText);
  ASSERT_GT(ids.size(), 1u);
  StreamDecoder decoder(&tokenizer, true);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(decoder.Push(ids[i]), "");
  EXPECT_EQ(decoder.Push(ids.back()), "🦙");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(StreamDecoder, FlushEndsHalfACodePointOnce) {
  const Tokenizer& tokenizer = DeployedTokenizer();
  const std::vector<int32_t> ids = tokenizer.Encode("🦙", Tokenizer::SpecialText::kAsPlainText);
  StreamDecoder decoder(&tokenizer, true);
  EXPECT_EQ(decoder.Push(ids[0]), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD");
  EXPECT_EQ(decoder.Flush(), "");
}

}  // namespace
}  // namespace shoal
