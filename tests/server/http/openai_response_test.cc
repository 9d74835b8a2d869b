#include "server/http/openai_response.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "server/http/json_writer.h"
#include "server/http/openai_logprobs.h"
#include "tests/tokenizer/deployed_tokenizer.h"

namespace shoal {
namespace {

using nlohmann::json;

const Usage kUsage = {.prompt_tokens = 3, .completion_tokens = 2, .cached_tokens = 1};

OpenAiAnswer Answer() { return {"id-1", 7, "asked", "fp"}; }

OpenAiRequest Request(bool is_chat, int n = 1) {
  OpenAiRequest request;
  request.is_chat = is_chat;
  request.prompts.emplace_back("p");
  request.call.n = n;
  return request;
}

GenerationDelta Text(int index, std::string text) {
  GenerationDelta delta;
  delta.index = index;
  delta.text = std::move(text);
  return delta;
}

GenerationDelta End(int index, FinishReason reason) {
  GenerationDelta delta;
  delta.index = index;
  delta.finish_reason = reason;
  return delta;
}

GenerationDelta::Token Token(int32_t id, std::optional<float> logprob,
                             std::vector<TokenLogprob> top = {}) {
  GenerationDelta::Token token;
  token.token_id = id;
  token.bytes = DeployedTokenizer().TokenBytes(id);
  token.logprob = logprob;
  token.top_logprobs = std::move(top);
  return token;
}

int32_t IdOf(const std::string& text) {
  return DeployedTokenizer().Encode(text, Tokenizer::SpecialText::kAsToken).at(0);
}

TEST(JsonWriter, EscapesWhatJsonNeedsAndMendsWhatIsNotUtf8) {
  EXPECT_EQ(JsonString("a\"\\\n\t\r\x01\x7F"), R"("a\"\\\n\t\r\u0001\u007f")");
  EXPECT_EQ(JsonString("\u00E9\u20AC\U0001F600"), "\"\u00E9\u20AC\U0001F600\"");
  for (const char* bad : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82"}) {
    EXPECT_FALSE(IsUtf8(bad));
    EXPECT_TRUE(json::accept(JsonString(bad))) << JsonString(bad);
  }
  EXPECT_EQ(JsonString("a\xE2\x82"), "\"a\uFFFD\uFFFD\"");
}

TEST(JsonWriter, LogprobsAreAlwaysNumbersAndReadBackExactly) {
  EXPECT_EQ(JsonLogprob(-std::numeric_limits<float>::infinity()), "-9999");
  EXPECT_EQ(JsonLogprob(std::numeric_limits<float>::quiet_NaN()), "-9999");
  for (const float value : {-0.1f, -1e-30f, -0.0f, -123.45678f, -1.0f / 3}) {
    const json parsed = json::parse(JsonLogprob(value));
    EXPECT_EQ(parsed.get<float>(), value);
  }
}

TEST(OpenAiResponse, ChatCompletionHasEveryMember) {
  const OpenAiRequest request = Request(true, 2);
  OpenAiResponse response(Answer(), &request, &DeployedTokenizer());
  response.Append(Text(1, "b"));
  response.Append(Text(0, "a"));
  response.Append(Text(0, "\u00E9\n"));
  response.Append(End(0, FinishReason::kLength));
  GenerationDelta end = End(1, FinishReason::kStop);
  end.stop_reason = "###";
  response.Append(end);
  EXPECT_EQ(json::parse(response.Body(kUsage)), json::parse(R"({
    "id": "id-1", "object": "chat.completion", "created": 7, "model": "asked",
    "system_fingerprint": "fp",
    "choices": [
      {"index": 0, "message": {"role": "assistant", "content": "aé\n", "refusal": null},
       "logprobs": null, "finish_reason": "length", "stop_reason": null},
      {"index": 1, "message": {"role": "assistant", "content": "b", "refusal": null},
       "logprobs": null, "finish_reason": "stop", "stop_reason": "###"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
              "prompt_tokens_details": {"cached_tokens": 1}}})"));
}

TEST(OpenAiResponse, TextCompletionHasEveryMember) {
  const OpenAiRequest request = Request(false);
  OpenAiResponse response(Answer(), &request, &DeployedTokenizer());
  GenerationDelta end = End(0, FinishReason::kStop);
  end.text = "hi";
  end.stop_reason = 17;
  response.Append(end);
  EXPECT_EQ(json::parse(response.Body(kUsage)), json::parse(R"({
    "id": "id-1", "object": "text_completion", "created": 7, "model": "asked",
    "system_fingerprint": "fp",
    "choices": [{"index": 0, "text": "hi", "logprobs": null, "finish_reason": "stop",
                 "stop_reason": 17}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
              "prompt_tokens_details": {"cached_tokens": 1}}})"));
}

TEST(OpenAiResponse, FirstChatChunkHasRoleAndText) {
  const OpenAiRequest request = Request(true);
  OpenAiResponse response(Answer(), &request, &DeployedTokenizer());
  EXPECT_TRUE(response.Chunks(Text(0, ""), kUsage).empty());  // half a code point

  auto chunks = response.Chunks(Text(0, "a"), kUsage);
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(json::parse(chunks[0]), json::parse(R"({
    "id": "id-1", "object": "chat.completion.chunk", "created": 7, "model": "asked",
    "system_fingerprint": "fp",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "logprobs": null,
                 "finish_reason": null}]})"));

  GenerationDelta last = End(0, FinishReason::kStop);
  last.text = "b";
  chunks = response.Chunks(last, kUsage);
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(json::parse(chunks[0])["choices"][0]["delta"], json::parse(R"({"content": "b"})"));
  EXPECT_EQ(json::parse(chunks[1])["choices"][0],
            json::parse(R"({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop",
                            "stop_reason": null})"));
}

TEST(OpenAiResponse, EmptyReplyStillHasARole) {
  const OpenAiRequest request = Request(true);
  OpenAiResponse response(Answer(), &request, &DeployedTokenizer());
  const auto chunks = response.Chunks(End(0, FinishReason::kStop), kUsage);
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(json::parse(chunks[0])["choices"][0]["delta"],
            json::parse(R"({"role": "assistant", "content": ""})"));
}

TEST(OpenAiResponse, UsageComesInAChunkOfItsOwn) {
  OpenAiRequest request = Request(false);
  request.include_usage = true;
  OpenAiResponse response(Answer(), &request, &DeployedTokenizer());
  const json chunk = json::parse(response.Chunks(Text(0, "a"), kUsage).at(0));
  EXPECT_TRUE(chunk.at("usage").is_null());
  EXPECT_EQ(chunk["choices"][0]["text"], "a");
  const json last = json::parse(response.UsageChunk(kUsage));
  EXPECT_EQ(last["choices"], json::array());
  EXPECT_EQ(last["usage"]["total_tokens"], 5);
  EXPECT_EQ(last["object"], "text_completion");

  request.continuous_usage_stats = true;
  OpenAiResponse continuous(Answer(), &request, &DeployedTokenizer());
  EXPECT_EQ(json::parse(continuous.Chunks(Text(0, "a"), kUsage).at(0))["usage"]["prompt_tokens"],
            3);
}

TEST(OpenAiResponse, ChatLogprobsHaveTokenBytesAndAlternatives) {
  const int32_t a = IdOf("a"), euro = IdOf("\u20AC");  // the first byte of three
  const json logprobs = json::parse(
      ChatLogprobs({Token(a, -0.5f, {{a, -0.5f}, {euro, -2.0f}})}, DeployedTokenizer()));
  ASSERT_EQ(logprobs["content"].size(), 1u);
  const json& entry = logprobs["content"][0];
  EXPECT_EQ(entry["token"], "a");
  EXPECT_EQ(entry["bytes"], json::parse("[97]"));
  EXPECT_EQ(entry["logprob"], -0.5);
  ASSERT_EQ(entry["top_logprobs"].size(), 2u);
  EXPECT_EQ(entry["top_logprobs"][1]["token"], "bytes:\\xe2");
  EXPECT_EQ(entry["top_logprobs"][1]["bytes"], json::parse("[226]"));
}

TEST(OpenAiResponse, CompletionLogprobsFollowTheEchoContract) {
  const int32_t a = IdOf("a"), b = IdOf("b"), c = IdOf("c");
  std::vector<GenerationDelta::Token> tokens = {
      Token(a, std::nullopt), Token(b, -0.1f, {{b, -0.1f}}), Token(c, -3.3f, {{a, -0.7f}})};
  tokens[1].text_offset = 1;
  tokens[2].text_offset = 2;
  const json logprobs = json::parse(CompletionLogprobs(tokens, DeployedTokenizer()));
  EXPECT_EQ(logprobs["tokens"], json::parse(R"(["a", "b", "c"])"));
  EXPECT_EQ(logprobs["token_logprobs"], json::parse("[null, -0.1, -3.3]"));
  EXPECT_EQ(logprobs["top_logprobs"],
            json::parse(R"([null, {"b": -0.1}, {"a": -0.7, "c": -3.3}])"));
  EXPECT_EQ(logprobs["text_offset"], json::parse("[0, 1, 2]"));
}

TEST(OpenAiResponse, TokensWithTheSameTextDoNotCollide) {
  const int32_t a = IdOf("a");
  const int32_t none = DeployedTokenizer().vocab_size() + 1;  // such ids have no text
  const std::string map = CompletionLogprobs(
      {Token(none, -0.5f, {{none + 1, -0.25f}, {none, -0.5f}, {none + 2, -0.75f}, {a, -1.0f}})},
      DeployedTokenizer());
  const json top = json::parse(map)["top_logprobs"][0];
  EXPECT_EQ(top.size(), 4u);
  EXPECT_EQ(top[""], -0.5);  // the token itself keeps its text
  EXPECT_EQ(top[fmt::format("token_id:{}", none + 1)], -0.25);
  EXPECT_EQ(top[fmt::format("token_id:{}", none + 2)], -0.75);
}

TEST(OpenAiResponse, ErrorsAreInOpenAisShape) {
  EXPECT_EQ(json::parse(OpenAiErrorBody(400, "bad \xFF", "n")), json::parse(R"({"error":
      {"message": "bad \ufffd", "type": "invalid_request_error", "param": "n", "code": null}})"));
  EXPECT_EQ(json::parse(OpenAiErrorBody(404, "x", "model"))["error"]["code"], "model_not_found");
  EXPECT_EQ(json::parse(OpenAiErrorBody(503, "x", ""))["error"]["type"], "server_error");
  EXPECT_EQ(json::parse(OpenAiErrorBody(503, "x", ""))["error"]["param"], nullptr);
}

TEST(OpenAiResponse, OurOwnFaultsAreNotToldToClients) {
  EXPECT_EQ(HttpStatusOf(absl::InternalError("at 0x7ffe")), 500);
  EXPECT_EQ(PublicMessage(absl::InternalError("at 0x7ffe")),
            "the server failed to answer this request");
  EXPECT_EQ(HttpStatusOf(absl::ResourceExhaustedError("full")), 429);
  const absl::Status dead_end = absl::FailedPreconditionError("no token may follow");
  EXPECT_EQ(HttpStatusOf(dead_end), 400);
  EXPECT_EQ(PublicMessage(dead_end), "no token may follow");
  EXPECT_EQ(PublicMessage(absl::ResourceExhaustedError("full")), "full");
  EXPECT_EQ(HttpStatusOf(absl::UnavailableError("draining")), 503);
  EXPECT_EQ(HttpStatusOf(absl::DeadlineExceededError("late")), 504);
  EXPECT_EQ(PublicMessage(absl::DeadlineExceededError("late")), "late");
}

TEST(OpenAiResponse, ModelAndTokenBodies) {
  EXPECT_EQ(json::parse(ModelListBody({"a/b", "c"}, 5, 4096)), json::parse(R"({"object": "list",
      "data": [{"id": "a/b", "object": "model", "created": 5, "owned_by": "shoal", "root": "a/b",
                "parent": null, "max_model_len": 4096},
               {"id": "c", "object": "model", "created": 5, "owned_by": "shoal", "root": "a/b",
                "parent": null, "max_model_len": 4096}]})"));
  EXPECT_EQ(json::parse(TokenizeBody({1, 2}, 9, nullptr)), json::parse(R"(
      {"count": 2, "max_model_len": 9, "tokens": [1, 2], "token_strs": null})"));
  const std::vector<std::string> strings = {"a", "\""};
  EXPECT_EQ(json::parse(TokenizeBody({1, 2}, 9, &strings))["token_strs"], json(strings));
  EXPECT_EQ(json::parse(DetokenizeBody("a\nb"))["prompt"], "a\nb");
}

}  // namespace
}  // namespace shoal
