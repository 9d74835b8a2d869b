#include "server/http/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "server/http/json_reader.h"
#include "server/service/field_error.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using TokenIds = GenerateCall::TokenIds;

/// A chat request with one message and `fields`, which begin with a comma.
absl::StatusOr<OpenAiRequest> Chat(const std::string& fields) {
  return ParseChatRequest(R"({"model":"m","messages":[{"role":"user","content":"hi"}])" + fields +
                          "}");
}

absl::StatusOr<OpenAiRequest> Completion(const std::string& fields) {
  return ParseCompletionRequest(R"({"model":"m","prompt":"hi")" + fields + "}");
}

absl::StatusOr<OpenAiRequest> ChatWith(const std::string& messages) {
  return ParseChatRequest(R"({"messages":)" + messages + "}");
}

absl::StatusOr<OpenAiRequest> CompletionWith(const std::string& prompt) {
  return ParseCompletionRequest(R"({"prompt":)" + prompt + "}");
}

const GenerateCall::Conversation& Messages(const absl::StatusOr<OpenAiRequest>& request) {
  return std::get<GenerateCall::Conversation>(request->prompts.at(0));
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

/// INVALID_ARGUMENT about `field`, and the message says so and `problem`.
void ExpectRefused(const absl::Status& status, const std::string& field,
                   const std::string& problem = "") {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(FieldOf(status), field) << status;
  EXPECT_THAT(Message(status), HasSubstr(field));
  EXPECT_THAT(Message(status), HasSubstr(problem));
}

TEST(OpenAiRequest, ReadsEveryChatField) {
  const auto request = Chat(
      R"(,"max_tokens":5,"temperature":0.5,"top_p":0.25,"top_k":7,"min_p":0.125,"n":2,"seed":-3,)"
      R"("stop":["a","b"],"stop_token_ids":[1,2],"ignore_eos":true,"skip_special_tokens":false,)"
      R"("presence_penalty":1.5,"frequency_penalty":-1,"repetition_penalty":1.25,"typical_p":0.75,)"
      R"("logit_bias":{"50":-100,"7":2.5},"min_tokens":3,"allowed_token_ids":[4,5],"priority":-2,)"
      R"("cache_salt":"s",)"
      R"("logprobs":true,"top_logprobs":4,"stream":true,"add_generation_prompt":false,)"
      R"("stream_options":{"include_usage":true,"continuous_usage_stats":true},"user":"u")");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->is_chat);
  EXPECT_EQ(request->model, "m");
  EXPECT_TRUE(request->stream && request->include_usage && request->continuous_usage_stats);
  const GenerateCall& call = request->call;
  EXPECT_EQ(call.max_tokens, 5);
  EXPECT_EQ(call.temperature, 0.5f);
  EXPECT_EQ(call.top_p, 0.25f);
  EXPECT_EQ(call.top_k, 7);
  EXPECT_EQ(call.min_p, 0.125f);
  EXPECT_EQ(call.n, 2);
  EXPECT_EQ(call.seed, static_cast<uint64_t>(-3));
  EXPECT_THAT(call.stop, ElementsAre("a", "b"));
  EXPECT_THAT(call.stop_token_ids, ElementsAre(1, 2));
  EXPECT_TRUE(call.ignore_eos);
  EXPECT_FALSE(call.skip_special_tokens);
  EXPECT_EQ(call.logprobs, 4);
  EXPECT_FALSE(call.add_generation_prompt);
  EXPECT_EQ(call.presence_penalty, 1.5f);
  EXPECT_EQ(call.frequency_penalty, -1);
  EXPECT_EQ(call.repetition_penalty, 1.25f);
  EXPECT_EQ(call.typical_p, 0.75f);
  EXPECT_THAT(call.logit_bias, ElementsAre(Pair(7, 2.5f), Pair(50, -100)));
  EXPECT_EQ(call.min_tokens, 3);
  EXPECT_THAT(call.allowed_token_ids, ElementsAre(4, 5));
  EXPECT_EQ(call.priority, -2);
  EXPECT_EQ(call.cache_salt, "s");
  EXPECT_EQ(call.user, "u");
}

TEST(OpenAiRequest, ReadsEveryCompletionField) {
  const auto request = Completion(R"(,"best_of":4,"n":2,"echo":true,"logprobs":1,"user":"u")");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->call.best_of, 4);
  EXPECT_EQ(request->call.num_generated(), 4);
  EXPECT_TRUE(request->call.echo);
  EXPECT_EQ(request->call.user, "u");
}

TEST(OpenAiRequest, DefaultsAreOpenAis) {
  const auto chat = Chat("");
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->call.max_tokens, std::nullopt);
  EXPECT_EQ(chat->call.temperature, 1);
  EXPECT_EQ(chat->call.top_p, 1);
  EXPECT_EQ(chat->call.n, 1);
  EXPECT_EQ(chat->call.logprobs, std::nullopt);
  EXPECT_FALSE(chat->stream || chat->include_usage);
  EXPECT_EQ(Completion("")->call.max_tokens, 16);
}

TEST(OpenAiRequest, NullMeansTheDefault) {
  const auto request = Completion(
      R"(,"max_tokens":null,"temperature":null,"top_p":null,"n":null,"seed":null,"stop":null,)"
      R"("logprobs":null,"stream":null,"stream_options":null,"echo":null,"logit_bias":null,)"
      R"("best_of":null,"suffix":null,"user":null,"presence_penalty":null,"typical_p":null,)"
      R"("min_tokens":null,"allowed_token_ids":null,"priority":null,"cache_salt":null)");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->call.best_of, std::nullopt);
  EXPECT_EQ(request->call.typical_p, 1);
  EXPECT_THAT(request->call.allowed_token_ids, IsEmpty());
  EXPECT_EQ(request->call.max_tokens, 16);
  EXPECT_EQ(request->call.temperature, 1);
  EXPECT_EQ(Chat(R"(,"temperature":0.5,"temperature":null)")->call.temperature, 1);
}

TEST(OpenAiRequest, LastOfEqualKeysCounts) {
  const auto request = ParseCompletionRequest(
      R"({"prompt":["a","b"],"max_tokens":1,"stop":["x","y"],"prompt":[3,4],"max_tokens":2,"stop":"z"})");
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->prompts.size(), 1u);
  EXPECT_THAT(std::get<TokenIds>(request->prompts[0]), ElementsAre(3, 4));
  EXPECT_EQ(request->call.max_tokens, 2);
  EXPECT_THAT(request->call.stop, ElementsAre("z"));
  EXPECT_EQ(
      Messages(
          ChatWith(R"([{"role":"user","content":[{"type":"text","text":"a"}],"content":"b"}])"))
          .at(0)
          .content,
      "b");
}

TEST(OpenAiRequest, ReadsMessages) {
  const auto request = ChatWith(
      R"([{"role":"developer","content":"be brief"},)"
      R"({"content":[{"type":"text","text":"a"},{"text":"b","type":"text","cache_control":{"x":[1]}}],)"
      R"("role":"user","name":"n","metadata":{"content":"no","role":[{"type":1}]}},)"
      R"({"role":"assistant","content":null,"tool_calls":[]}])");
  ASSERT_TRUE(request.ok()) << request.status();
  const auto& messages = Messages(request);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[0].content, "be brief");
  EXPECT_EQ(messages[1].role, "user");
  EXPECT_EQ(messages[1].content, "a\nb");
  EXPECT_EQ(messages[2].role, "assistant");
  EXPECT_EQ(messages[2].content, "");
}

TEST(OpenAiRequest, RefusesBadMessages) {
  ExpectRefused(ParseChatRequest(R"({"model":"m"})").status(), "messages");
  ExpectRefused(ChatWith("[]").status(), "messages");
  ExpectRefused(ChatWith("\"hi\"").status(), "messages", "but is the string \"hi\"");
  ExpectRefused(ChatWith("[1]").status(), "messages[0]", "but is 1");
  ExpectRefused(ChatWith(R"([{"role":"user","content":"a"},{"role":"user"}])").status(),
                "messages[1]", "role and content, but is not");
  ExpectRefused(ChatWith(R"([{"content":"a"}])").status(), "messages[0]", "role and content");
  ExpectRefused(ChatWith(R"([{"role":"tool","content":"a"}])").status(), "messages[0].role",
                "but is the string \"tool\"");
  ExpectRefused(ChatWith(R"([{"role":"user","content":5}])").status(), "messages[0].content");
  ExpectRefused(ChatWith(R"([{"role":"user","content":null}])").status(), "messages[0]");
  ExpectRefused(ChatWith(R"([{"role":"user","content":[{"type":"image_url"}]}])").status(),
                "messages[0].content[0].type", "image_url");
  ExpectRefused(ChatWith(R"([{"role":"user","content":[{"type":"text"}]}])").status(),
                "messages[0].content[0]");
  ExpectRefused(ChatWith(R"([{"role":"assistant","content":"","tool_calls":[{}]}])").status(),
                "messages[0].tool_calls[0]");
}

TEST(OpenAiRequest, ReadsEveryShapeOfPrompt) {
  EXPECT_EQ(std::get<std::string>(CompletionWith(R"("a")")->prompts.at(0)), "a");
  EXPECT_EQ(CompletionWith(R"(["a","b"])")->prompts.size(), 2u);
  EXPECT_THAT(std::get<TokenIds>(CompletionWith("[5,6]")->prompts.at(0)), ElementsAre(5, 6));
  const auto lists = CompletionWith("[[1],[2,3],[]]");
  ASSERT_TRUE(lists.ok()) << lists.status();
  ASSERT_EQ(lists->prompts.size(), 3u);
  EXPECT_THAT(std::get<TokenIds>(lists->prompts[1]), ElementsAre(2, 3));
  EXPECT_THAT(std::get<TokenIds>(lists->prompts[2]), IsEmpty());
}

TEST(OpenAiRequest, RefusesBadPrompts) {
  ExpectRefused(ParseCompletionRequest("{}").status(), "prompt");
  ExpectRefused(CompletionWith("[]").status(), "prompt");
  ExpectRefused(CompletionWith("7").status(), "prompt", "but is 7");
  ExpectRefused(CompletionWith(R"(["a",1])").status(), "prompt[1]", "same type");
  ExpectRefused(CompletionWith(R"([1,"a"])").status(), "prompt[1]", "same type");
  ExpectRefused(CompletionWith("[[1],2]").status(), "prompt[1]", "same type");
  ExpectRefused(CompletionWith("[1,[2]]").status(), "prompt[1]", "same type");
  ExpectRefused(CompletionWith("[[1,[2]]]").status(), "prompt[0][1]", "a token id");
  ExpectRefused(CompletionWith("[1,-1]").status(), "prompt[1]", "a token id");
  ExpectRefused(CompletionWith("[[0,4294967297]]").status(), "prompt[0][1]", "a token id");
  ExpectRefused(CompletionWith("[1.5]").status(), "prompt[0]");
  ExpectRefused(CompletionWith("[{}]").status(), "prompt[0]");
  std::string many = "[[1]";
  for (int i = 1; i < 65; ++i) many += ",[1]";
  ExpectRefused(CompletionWith(many + "]").status(), "prompt[64]", "at most 64");
}

TEST(OpenAiRequest, RefusesWrongTypesByName) {
  ExpectRefused(Chat(R"(,"model":1)").status(), "model", "a string");
  ExpectRefused(Chat(R"(,"temperature":"hot")").status(), "temperature",
                "must be a number, but is the string \"hot\"");
  ExpectRefused(Chat(R"(,"top_p":[1])").status(), "top_p", "an array");
  ExpectRefused(Chat(R"(,"n":1.5)").status(), "n", "1.5");
  ExpectRefused(Chat(R"(,"n":true)").status(), "n", "true");
  ExpectRefused(Chat(R"(,"max_tokens":"5")").status(), "max_tokens");
  ExpectRefused(Chat(R"(,"stream":1)").status(), "stream", "true or false");
  ExpectRefused(Chat(R"(,"stream_options":{"include_usage":"yes"})").status(),
                "stream_options.include_usage");
  ExpectRefused(Chat(R"(,"stream_options":[])").status(), "stream_options");
  ExpectRefused(Chat(R"(,"stop":5)").status(), "stop");
  ExpectRefused(Chat(R"(,"stop":["a",5])").status(), "stop[1]");
  ExpectRefused(Chat(R"(,"stop_token_ids":["a"])").status(), "stop_token_ids[0]");
  ExpectRefused(Chat(R"(,"seed":1.5)").status(), "seed");
  ExpectRefused(Chat(R"(,"presence_penalty":"x")").status(), "presence_penalty", "a number");
  ExpectRefused(Chat(R"(,"typical_p":true)").status(), "typical_p", "a number");
  for (const char* field : {"min_tokens", "n", "best_of", "logprobs", "top_k"}) {
    ExpectRefused(Completion(fmt::format(R"(,"{}":"x")", field)).status(), field,
                  "must be an integer of 32 bits, but is the string \"x\"");
  }
  ExpectRefused(Chat(R"(,"priority":4294967296)").status(), "priority", "an integer");
  ExpectRefused(Chat(R"(,"user":5)").status(), "user", "a string");
  ExpectRefused(Chat(R"(,"cache_salt":"")").status(), "cache_salt", "not empty");
  ExpectRefused(Chat(R"(,"cache_salt":7)").status(), "cache_salt", "a string");
  ExpectRefused(Chat(R"(,"allowed_token_ids":[])").status(), "allowed_token_ids",
                "an array of at least one token id, but is empty");
  ExpectRefused(Chat(R"(,"allowed_token_ids":[-1])").status(), "allowed_token_ids[0]");
  ExpectRefused(Chat(R"(,"logit_bias":[1])").status(), "logit_bias", "an object");
  ExpectRefused(Chat(R"(,"logit_bias":{"a":1})").status(), "logit_bias.a", "not a token id");
  ExpectRefused(Chat(R"(,"logit_bias":{"-1":1})").status(), "logit_bias.-1", "not a token id");
  ExpectRefused(Chat(R"(,"logit_bias":{"5x":1})").status(), "logit_bias.5x", "not a token id");
  for (const char* name : {"01", "-0", "+5", " 1", "5 "}) {
    ExpectRefused(Chat(fmt::format(R"(,"logit_bias":{{"{}":1}})", name)).status(),
                  fmt::format("logit_bias.{}", name), "not a token id");
  }
  ExpectRefused(Chat(R"(,"logit_bias":{"":1})").status(), "logit_bias.", "not a token id");
  ExpectRefused(Chat(R"(,"logit_bias":{"5":"1"})").status(), "logit_bias.5", "a number");
  ExpectRefused(Chat(R"(,"logit_bias":{"5":{}})").status(), "logit_bias.5", "a number");
  ExpectRefused(Chat(R"(,"logit_bias":{"4294967296":1})").status(), "logit_bias.4294967296");
  ExpectRefused(Chat(R"(,"logprobs":3)").status(), "logprobs", "true or false");
  ExpectRefused(Chat(R"(,"top_logprobs":21,"logprobs":true)").status(), "top_logprobs");
  ExpectRefused(Chat(R"(,"top_logprobs":2)").status(), "top_logprobs", "needs logprobs");
  ExpectRefused(Completion(R"(,"logprobs":true)").status(), "logprobs");
}

TEST(OpenAiRequest, RefusesHugeNumbersByName) {
  ExpectRefused(Chat(R"(,"max_tokens":4294967297)").status(), "max_tokens", "4294967297");
  ExpectRefused(Chat(R"(,"max_tokens":-1)").status(), "max_tokens", "-1");
  ExpectRefused(Chat(R"(,"n":1e100)").status(), "n", "1e+100");
  ExpectRefused(Chat(R"(,"n":99999999999999999999999)").status(), "n");
  ExpectRefused(Chat(R"(,"temperature":1e300)").status(), "temperature");
  ExpectRefused(Chat(R"(,"temperature":1e999)").status(), "temperature", "too large");
  ExpectRefused(CompletionWith("[[1,1e999]]").status(), "prompt[0][1]", "too large");
  ExpectRefused(Chat(R"(,"seed":18446744073709551615)").status(), "seed");
  EXPECT_TRUE(Chat(R"(,"seed":9223372036854775807)").ok());
  EXPECT_EQ(*Chat(R"(,"seed":-9223372036854775808)")->call.seed, 1ull << 63);
  EXPECT_EQ(Chat(R"(,"n":2.0)")->call.n, 2);
}

TEST(OpenAiRequest, RefusesWhatIsNotJson) {
  const auto refused = [](const std::string& body, const std::string& problem) {
    const absl::Status status = ParseChatRequest(body).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_THAT(Message(status), HasSubstr(problem)) << body;
  };
  refused("", "not valid JSON at byte 1");
  refused("{\"model\":", "at byte 10: unexpected end of input");
  refused("{\"temperature\":NaN}", "at byte 16");
  refused("{\"temperature\":-Infinity}", "at byte 17");
  refused("{\"a\":1,}", "at byte 8");
  refused("{} x", "at byte 4");
  refused(std::string("{}\0", 3), "at byte 3: a zero byte");
  refused("{\"model\":\"\xFF\"}", "ill-formed UTF-8");
  refused("{\"model\":\"\\ud800\"}", "surrogate");
  refused("{\"model\":\"\x01\"}", "control character");
  refused("[]", "the body must be a JSON object, but is an array");
  refused("null", "the body must be a JSON object, but is null");
}

TEST(OpenAiRequest, LimitsDepthAndNumberOfValues) {
  const std::string deep(10'000, '[');
  EXPECT_THAT(Message(ParseChatRequest("{\"unknown\":" + deep).status()), HasSubstr("64 deep"));
  const std::string inner(62, '[');
  EXPECT_TRUE(Chat(",\"unknown\":" + inner + std::string(62, ']')).ok());

  std::string wide = "{\"unknown\":[0";
  for (int64_t i = 0; i < kMaxJsonNodes; ++i) wide += ",0";
  EXPECT_THAT(Message(ParseChatRequest(wide + "]}").status()), HasSubstr("1000000 JSON values"));
}

TEST(OpenAiRequest, IgnoresUnknownFields) {
  EXPECT_TRUE(Chat(R"(,"metadata":{"messages":[{"role":7}]},"store":false,"service_tier":"auto",)"
                   R"("web_search_options":{"n":"x"},"prompt":5)")
                  .ok());
}

TEST(OpenAiRequest, LastOfEqualTokensInALogitBiasCounts) {
  EXPECT_THAT(Chat(R"(,"logit_bias":{"5":1,"5":3})")->call.logit_bias, ElementsAre(Pair(5, 3)));
  EXPECT_THAT(Chat(R"(,"logit_bias":{"5":1},"logit_bias":{"6":2})")->call.logit_bias,
              ElementsAre(Pair(6, 2)));
}

TEST(OpenAiRequest, NeutralValuesOfUnsupportedFieldsPass) {
  EXPECT_TRUE(
      Chat(R"(,"response_format":{"type":"text"},"tools":[],"tool_choice":"auto","best_of":1,)"
           R"("guided_json":null,"bad_words":[],"use_beam_search":false,"length_penalty":1.0,)"
           R"("regex":null,"json_schema":"","chat_template_kwargs":{},"modalities":["text"])")
          .ok());
  EXPECT_TRUE(Chat(R"(,"tools":[{"type":"function"}],"tool_choice":"none")").ok());
  EXPECT_TRUE(Completion(R"(,"best_of":2,"n":2,"stream":true,"suffix":"")").ok());
}

TEST(OpenAiRequest, RefusesUnsupportedFieldsByName) {
  ExpectRefused(Chat(R"(,"response_format":{"type":"json_schema","json_schema":{}})").status(),
                "response_format.type", "json_schema");
  ExpectRefused(Chat(R"(,"tools":[{}],"tool_choice":"required")").status(), "tool_choice");
  ExpectRefused(Chat(R"(,"tool_choice":{"type":"function"})").status(), "tool_choice");
  ExpectRefused(Chat(R"(,"tools":[{"type":"function"}])").status(), "tools");
  ExpectRefused(Chat(R"(,"guided_regex":"a+")").status(), "guided_regex");
  ExpectRefused(Chat(R"(,"regex":"a+")").status(), "regex");
  ExpectRefused(Completion(R"(,"json_schema":{"type":"object"})").status(), "json_schema.type");
  ExpectRefused(Completion(R"(,"length_penalty":0.5)").status(), "length_penalty", "0.5");
  ExpectRefused(Chat(R"(,"chat_template_kwargs":{"enable_thinking":true})").status(),
                "chat_template_kwargs.enable_thinking");
  ExpectRefused(Chat(R"(,"modalities":["text","audio"])").status(), "modalities[1]", "audio");
  ExpectRefused(Chat(R"(,"modalities":"text")").status(), "modalities", "an array");
  ExpectRefused(Chat(R"(,"echo":true)").status(), "echo");
  ExpectRefused(Chat(R"(,"best_of":2)").status(), "best_of", "not supported");
  ExpectRefused(Completion(R"(,"best_of":2,"stream":true)").status(), "best_of", "in a stream");
  ExpectRefused(Completion(R"(,"suffix":"end")").status(), "suffix");
  ExpectRefused(Completion(R"(,"add_special_tokens":false)").status(), "add_special_tokens");
}

TEST(OpenAiRequest, StopLeavesOutEmptyAndNull) {
  EXPECT_THAT(Chat(R"(,"stop":["",null,"a"])")->call.stop, ElementsAre("a"));
  EXPECT_THAT(Chat(R"(,"stop":"")")->call.stop, IsEmpty());
}

TEST(OpenAiRequest, MaxCompletionTokensIsTheNewName) {
  EXPECT_EQ(Chat(R"(,"max_completion_tokens":7,"max_tokens":5)")->call.max_tokens, 7);
}

// What the clients of the ecosystem send, field by field.
TEST(OpenAiRequest, AcceptsWhatClientsSend) {
  const auto evaluation = ParseCompletionRequest(
      R"({"model":"m","prompt":[[1,2,3],[4,5]],"temperature":0,"max_tokens":1,"logprobs":1,)"
      R"("seed":1234,"echo":true})");
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  EXPECT_TRUE(evaluation->call.echo);
  EXPECT_EQ(evaluation->call.logprobs, 1);
  EXPECT_EQ(evaluation->prompts.size(), 2u);

  EXPECT_TRUE(
      ParseChatRequest(
          R"({"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],)"
          R"("temperature":0.0,"repetition_penalty":1.0,"max_completion_tokens":8,)"
          R"("stream":true,"logprobs":null,"ignore_eos":true,"stop":null,)"
          R"("stream_options":{"include_usage":true,"continuous_usage_stats":true}})")
          .ok());
  EXPECT_TRUE(ParseCompletionRequest(R"({"model":"m","prompt":["x"],"n":1,"max_tokens":0})").ok());
}

TEST(OpenAiRequest, ReadsTokenizeAndDetokenize) {
  const auto tokenize = ParseTokenizeRequest(R"({"prompt":"a","add_special_tokens":false})");
  ASSERT_TRUE(tokenize.ok()) << tokenize.status();
  EXPECT_FALSE(tokenize->add_special_tokens);
  EXPECT_TRUE(ParseTokenizeRequest(R"({"messages":[{"role":"user","content":"a"}]})").ok());
  ExpectRefused(ParseTokenizeRequest(R"({"prompt":["a","b"]})").status(), "prompt");
  ExpectRefused(ParseTokenizeRequest("{}").status(), "prompt");
  ExpectRefused(
      ParseTokenizeRequest(R"({"prompt":"b","messages":[{"role":"user","content":"a"}]})").status(),
      "messages");
  EXPECT_THAT(ParseDetokenizeRequest(R"({"tokens":[1,2]})")->tokens, ElementsAre(1, 2));
  ExpectRefused(ParseDetokenizeRequest(R"({"tokens":[-1]})").status(), "tokens[0]");
  ExpectRefused(ParseDetokenizeRequest("{}").status(), "tokens");
}

}  // namespace
}  // namespace shoal
