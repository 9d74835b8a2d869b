#include "tokenizer/tokenizer_definition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "tests/tokenizer/deployed_tokenizer.h"
#include "tokenizer/byte_level.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr auto kAsToken = Tokenizer::SpecialText::kAsToken;

// The 256 bytes, two merges, a token of the vocabulary that nothing merges to, a special token.
Json SmallTokenizer() {
  Json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[LetterOfByte(byte)] = byte;
  vocab["ab"] = 256;
  vocab["Ġab"] = 257;
  vocab["</s>"] = 259;
  return {{"added_tokens", {{{"id", 258}, {"content", "<s>"}, {"special", true}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "Ġ ab"}}}}};
}

Json SmallConfig() {
  return {{"bos_token", "<s>"}, {"add_bos_token", true}, {"chat_template", "t"}};
}

std::string Refusal(const Json& tokenizer, const Json& config = SmallConfig()) {
  return std::string(Tokenizer::FromJson(tokenizer.dump(), config.dump()).status().message());
}

std::string RefusalOf(const std::string& pointer, const Json& value) {
  Json tokenizer = SmallTokenizer();
  tokenizer[Json::json_pointer(pointer)] = value;
  return Refusal(tokenizer);
}

std::unique_ptr<Tokenizer> Make(const Json& tokenizer, const std::string& config) {
  auto made = Tokenizer::FromJson(tokenizer.dump(), config);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

TEST(TokenizerDefinition, ReadsMergesAsTextAndAsPairs) {
  Json tokenizer = SmallTokenizer();
  EXPECT_THAT(Make(tokenizer, "")->Encode("ab ab", kAsToken), ElementsAre(256, 257));
  tokenizer["model"]["merges"] = Json::parse(R"([["a", "b"], ["Ġ", "ab"]])");
  EXPECT_THAT(Make(tokenizer, "")->Encode("ab ab", kAsToken), ElementsAre(256, 257));
}

TEST(TokenizerDefinition, TakesTheLongestAddedToken) {
  Json tokenizer = SmallTokenizer();
  tokenizer["added_tokens"].push_back({{"id", 260}, {"content", "<s><s>"}});
  EXPECT_THAT(Make(tokenizer, "")->Encode("<s><s><s>", kAsToken), ElementsAre(260, 258));
}

TEST(TokenizerDefinition, ReadsTheConfig) {
  const auto none = Make(SmallTokenizer(), "");
  EXPECT_EQ(none->bos_id(), -1);
  EXPECT_FALSE(none->add_bos());
  EXPECT_EQ(none->chat_template(), "");

  Json config = SmallConfig();
  config["bos_token"] = {{"content", "<s>"}};
  config["eos_token"] = "</s>";  // a token like any other until it is named here
  config["chat_template"] = {{{"name", "tool_use"}, {"template", "x"}},
                             {{"name", "default"}, {"template", "y"}}};
  const auto full = Make(SmallTokenizer(), config.dump());
  EXPECT_EQ(full->bos_id(), 258);
  EXPECT_TRUE(full->add_bos());
  EXPECT_TRUE(full->IsSpecial(full->eos_id()));
  EXPECT_THAT(full->Encode("</s>", kAsToken), ElementsAre(259));
  EXPECT_EQ(full->chat_template(), "y");
}

TEST(TokenizerDefinition, TakesBosFromTheTemplateProcessor) {
  Json tokenizer = SmallTokenizer();
  tokenizer["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  const auto made = Make(tokenizer, "");
  EXPECT_EQ(made->bos_id(), 258);
  EXPECT_TRUE(made->add_bos());
  EXPECT_FALSE(Make(tokenizer, R"({"add_bos_token": false})")->add_bos());

  tokenizer["post_processor"]["single"].push_back({{"SpecialToken", {{"id", "<s>"}}}});
  EXPECT_THAT(Refusal(tokenizer), HasSubstr("post_processor.single"));
}

TEST(TokenizerDefinition, RefusesUnsupportedValuesByName) {
  EXPECT_THAT(RefusalOf("/normalizer", {{"type", "NFC"}}),
              HasSubstr("tokenizer.json.normalizer is"));
  EXPECT_THAT(RefusalOf("/decoder", nullptr),
              HasSubstr("decoder.type is null; supported: ByteLevel"));
  EXPECT_THAT(RefusalOf("/post_processor", {{"type", "BertProcessing"}}),
              HasSubstr("post_processor.type"));
  EXPECT_THAT(RefusalOf("/pre_tokenizer", nullptr), HasSubstr("pre_tokenizer.type"));
  EXPECT_THAT(RefusalOf("/model/type", "Unigram"), HasSubstr("model.type is \"Unigram\""));
  EXPECT_THAT(RefusalOf("/model/dropout", 0.1), HasSubstr("model.dropout"));
  EXPECT_THAT(RefusalOf("/model/byte_fallback", true), HasSubstr("model.byte_fallback"));
  EXPECT_THAT(RefusalOf("/model/end_of_word_suffix", "</w>"),
              HasSubstr("model.end_of_word_suffix"));
  EXPECT_THAT(RefusalOf("/added_tokens/0/lstrip", true), HasSubstr("added_tokens[0].lstrip"));
  EXPECT_THAT(RefusalOf("/added_tokens/0/id", 7), HasSubstr("added_tokens[0].id is 7"));
  EXPECT_THAT(RefusalOf("/added_tokens/0/id", 1e9), HasSubstr("added_tokens[0].id"));
  EXPECT_THAT(RefusalOf("/added_tokens/0/content", ""), HasSubstr("added_tokens[0].content"));
  EXPECT_THAT(RefusalOf("/model/vocab/ab", -1), HasSubstr("model.vocab.ab is -1"));
  EXPECT_THAT(RefusalOf("/model/vocab/ab", 0), HasSubstr("is 0; supported: one text for each id"));
  EXPECT_THAT(RefusalOf("/model/merges/1", "a  b"), HasSubstr("model.merges[1] is \"a  b\""));
  EXPECT_THAT(RefusalOf("/model/merges/1", Json::array({"a", "q"})), HasSubstr("model.merges[1]"));

  Json no_space = SmallTokenizer();
  no_space["model"]["vocab"].erase("Ġ");
  EXPECT_THAT(Refusal(no_space), HasSubstr("no token for byte 0x20 (letter Ġ)"));
}

TEST(TokenizerDefinition, RefusesBadConfigsByName) {
  const Json tokenizer = SmallTokenizer();
  EXPECT_THAT(Refusal(tokenizer, {{"bos_token", "<none>"}}),
              HasSubstr("tokenizer_config.json.bos_token is"));
  EXPECT_THAT(Refusal(tokenizer, {{"eos_token", 5}}),
              HasSubstr("eos_token is 5; supported: a string"));
  EXPECT_THAT(Refusal(tokenizer, {{"add_bos_token", true}}), HasSubstr("add_bos_token"));
  EXPECT_THAT(Refusal(tokenizer, {{"chat_template", Json::array()}}), HasSubstr("chat_template"));
}

// Otherwise a client's text could end the conversation.
TEST(TokenizerDefinition, RefusesSpecialTokensThatMergesMake) {
  EXPECT_THAT(Refusal(SmallTokenizer(), {{"eos_token", "ab"}}),
              HasSubstr("id 256 is special, but model.merges"));
  EXPECT_THAT(Refusal(SmallTokenizer(), {{"eos_token", "a"}}), HasSubstr("the byte alphabet"));
}

TEST(TokenizerDefinition, RefusesWhatIsNotJson) {
  const auto refusal = [](const std::string& text) {
    return std::string(Tokenizer::FromJson(text, "").status().message());
  };
  EXPECT_THAT(refusal(""), HasSubstr("tokenizer.json is not valid JSON at byte 1"));
  EXPECT_THAT(refusal("{\"a\": }"), HasSubstr("at byte 7"));
  EXPECT_THAT(refusal("\"\xFF\""), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"a\": 1e999}"), HasSubstr("tokenizer.json"));
  EXPECT_THAT(refusal(std::string(1 << 20, '[')), HasSubstr("nests deeper than 64 levels"));
  EXPECT_THAT(refusal("[]"), HasSubstr("tokenizer.json"));
}

TEST(TokenizerDefinition, NamesTheFileThatIsMissing) {
  EXPECT_THAT(std::string(Tokenizer::Load("tests/nowhere").status().message()),
              HasSubstr("tests/nowhere/tokenizer.json"));
}

// Every value of the file, replaced by each of these, is either refused with a message or usable.
TEST(TokenizerDefinition, SurvivesEveryReplacedValue) {
  const std::vector<Json> values = {nullptr,
                                    true,
                                    -1,
                                    1e300,
                                    1u << 19,
                                    "",
                                    "a b",
                                    "\u0120",
                                    Json::array(),
                                    Json::object(),
                                    Json::array({1, "a"})};
  std::set<std::string> places;
  const Json leaves = SmallTokenizer().flatten();
  for (const auto& [pointer, leaf] : leaves.items()) {
    if (pointer.starts_with("/model/vocab/") && pointer != "/model/vocab/ab") continue;
    for (Json::json_pointer place(pointer); !place.empty(); place.pop_back()) {
      places.insert(place.to_string());
    }
  }
  ASSERT_GT(places.size(), 15u);
  for (const std::string& place : places) {
    for (const Json& value : values) {
      Json tokenizer = SmallTokenizer();
      tokenizer[Json::json_pointer(place)] = value;
      const auto made = Tokenizer::FromJson(tokenizer.dump(), SmallConfig().dump());
      if (made.ok()) {
        const std::vector<int32_t> ids = (*made)->Encode("ab <s>", kAsToken);
        EXPECT_THAT((*made)->Decode(ids, false), HasSubstr("ab <s>")) << place << value;
      } else {
        EXPECT_THAT(std::string(made.status().message()), HasSubstr("tokenizer")) << place << value;
      }
    }
  }
}

}  // namespace
}  // namespace shoal
