#include "server/http/openai_routes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "server/http/admin_routes.h"
#include "server/http/http_server.h"
#include "tests/server/http/raw_client.h"
#include "tests/server/service/small_service.h"

namespace shoal {
namespace {

using nlohmann::json;
using std::chrono_literals::operator""ms;
using testing::HasSubstr;

/// A real server over a small engine, for all tests.
class OpenAiRoutesTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    EngineConfig engine;
    engine.max_num_seqs = 16;
    engine.max_num_queued_requests = 40;
    small_ = new SmallService(nullptr, engine);
    server_ = StartServer({{"org/model", "alias"}, 123, "fp"}).release();
  }
  static std::unique_ptr<HttpServer> StartServer(const OpenAiOptions& options,
                                                 SmallService* small = small_) {
    HttpServerConfig config;
    config.port = 0;
    std::vector<HttpRoute> routes = OpenAiRoutes(&**small, options);
    for (HttpRoute& route : EngineRoutes(&(*small)->engine())) routes.push_back(std::move(route));
    auto server = HttpServer::Start(config, std::move(routes), nullptr);
    SHOAL_CHECK(server.ok(), "{}", server.status().ToString());
    return *std::move(server);
  }
  static void TearDownTestSuite() {
    server_->Stop();
    delete server_;
    delete small_;
  }

  static RawResponse Get(const std::string& path) {
    return RawClient(server_->port()).Ask(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path));
  }
  static std::string PostBytes(const std::string& path, const std::string& body,
                               const std::string& headers = "") {
    return fmt::format(
        "POST {} HTTP/1.1\r\nHost: x\r\nX-Request-Id: r1\r\n{}Content-Length: {}\r\n\r\n{}", path,
        headers, body.size(), body);
  }
  static RawResponse Post(const std::string& path, const std::string& body,
                          const std::string& headers = "") {
    return RawClient(server_->port()).Ask(PostBytes(path, body, headers));
  }
  /// The answer to a request that must succeed.
  static json Ask(const std::string& path, const std::string& body) {
    const RawResponse response = Post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  }
  /// The data of the events of a stream.
  static std::vector<std::string> Events(const std::string& body) {
    std::vector<std::string> events;
    for (size_t begin = 0; begin < body.size();) {
      const size_t end = body.find("\n\n", begin);
      EXPECT_EQ(body.compare(begin, 6, "data: "), 0) << body.substr(begin);
      if (end == std::string::npos) break;
      events.push_back(body.substr(begin + 6, end - begin - 6));
      begin = end + 2;
    }
    return events;
  }

  static HttpServer* server_;
  static SmallService* small_;
};

HttpServer* OpenAiRoutesTest::server_ = nullptr;
SmallService* OpenAiRoutesTest::small_ = nullptr;

constexpr char kChat[] =
    R"("messages":[{"role":"user","content":"hi"}],"temperature":0,"ignore_eos":true)";

TEST_F(OpenAiRoutesTest, ChatCompletion) {
  const json answer =
      Ask("/v1/chat/completions", fmt::format(R"({{"model":"alias","max_tokens":5,{}}})", kChat));
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["id"], "chatcmpl-r1");
  EXPECT_EQ(answer["model"], "alias");
  EXPECT_EQ(answer["system_fingerprint"], "fp");
  EXPECT_EQ(answer["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 5);
}

TEST_F(OpenAiRoutesTest, StreamSaysWhatTheWholeAnswerSays) {
  const std::string whole =
      Ask("/v1/chat/completions",
          fmt::format(R"({{"max_tokens":30,{}}})", kChat))["choices"][0]["message"]["content"];
  const RawResponse response =
      Post("/v1/chat/completions",
           fmt::format(
               R"({{"max_tokens":30,"stream":true,"stream_options":{{"include_usage":true}},{}}})",
               kChat));
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.Has("Content-Type: text/event-stream; charset=utf-8")) << response.head;
  EXPECT_TRUE(response.Has("Cache-Control: no-cache"));
  EXPECT_TRUE(response.Has("X-Accel-Buffering: no"));
  const std::vector<std::string> events = Events(response.body);
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events.back(), "[DONE]");

  std::string text;
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    const json chunk = json::parse(events[i]);
    EXPECT_TRUE(chunk.at("usage").is_null());
    const json& choice = chunk["choices"][0];
    EXPECT_EQ(choice["delta"].contains("role"), i == 0);
    EXPECT_EQ(choice["finish_reason"].is_null(), i + 3 < events.size());
    if (i + 3 < events.size()) text += choice["delta"]["content"];
  }
  EXPECT_EQ(text, whole);
  const json usage = json::parse(events[events.size() - 2]);
  EXPECT_EQ(usage["choices"], json::array());
  EXPECT_EQ(usage["usage"]["completion_tokens"], 30);
}

TEST_F(OpenAiRoutesTest, NoUsageChunkUnlessAsked) {
  const RawResponse response =
      Post("/v1/completions", R"({"prompt":"a","max_tokens":3,"stream":true,"ignore_eos":true})");
  for (const std::string& event : Events(response.body)) {
    if (event == "[DONE]") continue;
    const json chunk = json::parse(event);
    EXPECT_EQ(chunk["choices"].size(), 1u);
    EXPECT_FALSE(chunk.contains("usage"));
    EXPECT_EQ(chunk["object"], "text_completion");
  }
}

// What lm-eval asks for, and what it relies on.
TEST_F(OpenAiRoutesTest, EchoContract) {
  const std::vector<std::vector<int32_t>> prompts = {{5, 6, 7, 8}, {9, 10}, {200, 201, 202}};
  const json answer = Ask(
      "/v1/completions",
      fmt::format(
          R"({{"model":"org/model","prompt":{},"temperature":0,"max_tokens":1,"logprobs":1,"seed":1234,"echo":true}})",
          json(prompts).dump()));
  ASSERT_EQ(answer["choices"].size(), 3u);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const json& choice = answer["choices"][i];
    EXPECT_EQ(choice["index"], i);
    const json& logprobs = choice["logprobs"];
    for (const char* list : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
      EXPECT_EQ(logprobs[list].size(), prompts[i].size() + 1) << list;
    }
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
    for (size_t j = 1; j <= prompts[i].size(); ++j) {
      const json& top = logprobs["top_logprobs"][j];
      const json& logprob = logprobs["token_logprobs"][j];
      EXPECT_EQ(top[logprobs["tokens"][j].get<std::string>()].dump(), logprob.dump());
      double best = -1e9;
      for (const json& value : top) best = std::max(best, value.get<double>());
      EXPECT_EQ(top.size(), logprob.get<double>() == best ? 1u : 2u);
      // The generated token is greedy, so it is its own best alternative.
      if (j == prompts[i].size()) EXPECT_EQ(logprob.get<double>(), best);
    }
  }
}

TEST_F(OpenAiRoutesTest, ChoicesOfSeveralPromptsAreNumberedThrough) {
  const json answer = Ask(
      "/v1/completions", R"({"prompt":["a","b"],"n":2,"max_tokens":4,"seed":1,"ignore_eos":true})");
  ASSERT_EQ(answer["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(answer["choices"][i]["index"], i);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 16);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 4);  // BOS and a letter each, counted once
  const json second =
      Ask("/v1/completions", R"({"prompt":"b","max_tokens":4,"seed":1,"ignore_eos":true})");
  EXPECT_EQ(answer["choices"][2]["text"], second["choices"][0]["text"]);
}

TEST_F(OpenAiRoutesTest, ErrorsNameTheField) {
  RawResponse response =
      Post("/v1/chat/completions", fmt::format(R"({{"temperature":"hot",{}}})", "\"messages\":[]"));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(json::parse(response.body)["error"]["param"], "temperature");
  response = Post("/v1/completions", R"({"prompt":"a","top_p":7})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(json::parse(response.body)["error"]["param"], "top_p");
  response = Post("/v1/completions", R"({"prompt":"a","model":"gpt"})");
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(json::parse(response.body)["error"]["code"], "model_not_found");
  EXPECT_EQ(json::parse(response.body)["error"]["param"], "model");
  EXPECT_EQ(Post("/v1/completions", "{").status, 400);
  // A stream is refused in the same way: its status is not out yet.
  response = Post("/v1/completions", R"({"prompt":[[999999]],"stream":true})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(json::parse(response.body)["error"]["param"], "prompt");
}

TEST_F(OpenAiRoutesTest, ErrorsNameTheFieldThatTheClientSent) {
  for (const char* field : {"max_tokens", "max_completion_tokens"}) {
    for (const int value : {-1, 9999}) {
      const RawResponse response =
          Post("/v1/chat/completions", fmt::format(R"({{"{}":{},{}}})", field, value, kChat));
      EXPECT_EQ(response.status, 400);
      const json error = json::parse(response.body)["error"];
      EXPECT_EQ(error["param"], field);
      EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(fmt::format("{} ", field)));
    }
    const RawResponse response =
        Post("/v1/chat/completions", fmt::format(R"({{"{}":3,"min_tokens":4,{}}})", field, kChat));
    EXPECT_EQ(response.status, 400);
    const json error = json::parse(response.body)["error"];
    EXPECT_EQ(error["param"], "min_tokens");
    EXPECT_THAT(error["message"].get<std::string>(),
                HasSubstr(fmt::format("at most {}, which is 3", field)));
  }
}

TEST_F(OpenAiRoutesTest, OverloadSaysWhenToRetry) {
  std::string prompts = "[[1]";
  for (int i = 1; i < 64; ++i) prompts += ",[1]";
  auto places = (*small_)->engine().Reserve(30);
  ASSERT_TRUE(places.ok()) << places.status();
  // Also of a prompt that nobody has looked at yet.
  for (const char* prompt : {"\"a\"", "[]"}) {
    const RawResponse response =
        Post("/v1/completions", fmt::format(R"({{"prompt":[{}],"n":16,"max_tokens":1}})", prompt));
    EXPECT_EQ(response.status, 429) << response.body;
    EXPECT_THAT(response.head, testing::ContainsRegex("Retry-After: [1-9][0-9]*\r\n"));
    EXPECT_THAT(response.head, testing::ContainsRegex("retry-after-ms: [1-9][0-9]*\r\n"));
  }
  // The refused request has left no part of itself behind.
  *places = QueueSlot();  // given back
  EXPECT_EQ(Post("/v1/completions", R"({"prompt":"a","n":16,"max_tokens":1})").status, 200);
  // What no queue would hold is the request's own fault.
  EXPECT_EQ(Post("/v1/completions", fmt::format(R"({{"prompt":{}],"n":3}})", prompts)).status, 400);
  const RawResponse best = Post(
      "/v1/completions", fmt::format(R"({{"prompt":{}],"best_of":3,"max_tokens":1}})", prompts));
  EXPECT_EQ(best.status, 400);
  EXPECT_EQ(json::parse(best.body)["error"]["param"], "best_of");
}

TEST_F(OpenAiRoutesTest, BestOfGivesNChoicesAndCountsAll) {
  const json answer =
      Ask("/v1/completions",
          R"({"prompt":["a","b"],"n":2,"best_of":4,"max_tokens":5,"ignore_eos":true})");
  ASSERT_EQ(answer["choices"].size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(answer["choices"][i]["index"], i);
    EXPECT_TRUE(answer["choices"][i]["logprobs"].is_null());
    EXPECT_EQ(answer["choices"][i]["finish_reason"], "length");
  }
  EXPECT_EQ(answer["usage"]["completion_tokens"], 2 * 4 * 5);
}

TEST_F(OpenAiRoutesTest, ARequestIsNotInItsOwnWay) {
  EngineConfig engine;
  engine.max_num_seqs = 1;
  engine.max_num_queued_requests = 8;
  engine.max_num_queued_tokens = 10;
  SmallService small(nullptr, engine);
  const auto server = StartServer({{"m"}, 123, "fp"}, &small);
  const auto ask = [&](const std::string& body) {
    return RawClient(server->port()).Ask(PostBytes("/v1/completions", body));
  };
  // Neither by its choices nor by its tokens.
  const RawResponse most =
      ask(R"({"prompt":[[1,2,3,4],[5,6,7],[8,9,10,11],[12]],"n":2,"max_tokens":1})");
  EXPECT_EQ(most.status, 200) << most.body;
  for (const char* too_many : {R"({"prompt":["a","b","c"],"n":3})", R"({"prompt":"a","n":9})"}) {
    const RawResponse refused = ask(too_many);
    EXPECT_EQ(refused.status, 400) << refused.body;
    EXPECT_EQ(json::parse(refused.body)["error"]["param"], "n");
  }
  const RawResponse refused =
      ask(R"({"prompt":["1","2","3","4","5","6","7","8","9"],"max_tokens":1})");
  EXPECT_EQ(refused.status, 400) << refused.body;
  EXPECT_EQ(json::parse(refused.body)["error"]["param"], "prompt");
  server->Stop();
}

TEST_F(OpenAiRoutesTest, ABadPromptIsFoundBeforeTheOthersBegin) {
  Metrics metrics("m");
  SmallService small(&metrics);
  const auto server = StartServer({{"m"}, 123, "fp"}, &small);
  const RawResponse refused =
      RawClient(server->port()).Ask(PostBytes("/v1/completions", R"({"prompt":[[1],[999999]]})"));
  EXPECT_EQ(refused.status, 400) << refused.body;
  server->Stop();
  EXPECT_THAT(metrics.Text(), HasSubstr(R"(finished_reason="abort",model_name="m"} 0)"));
}

TEST_F(OpenAiRoutesTest, ConstraintsThatLeaveNoTokenAreRefused) {
  const RawResponse response =
      Post("/v1/completions", R"({"prompt":"a","allowed_token_ids":[7,8],"stop_token_ids":[8,7],)"
                              R"("min_tokens":2,"max_tokens":5})");
  EXPECT_EQ(response.status, 400) << response.body;
  EXPECT_EQ(json::parse(response.body)["error"]["param"], "min_tokens");
  const json answer =
      Ask("/v1/completions", R"({"prompt":"a","allowed_token_ids":[7,8],"stop_token_ids":[8],)"
                             R"("min_tokens":2,"max_tokens":5})");
  EXPECT_GE(answer["usage"]["completion_tokens"], 2);
}

constexpr char kLong[] = R"({"prompt":"a","max_tokens":8000,"ignore_eos":true})";

TEST_F(OpenAiRoutesTest, ARequestThatTakesTooLongEndsWith504) {
  const RawResponse response = Post("/v1/completions", kLong, "X-Request-Timeout-Ms: 1\r\n");
  EXPECT_EQ(response.status, 504) << response.body;
  EXPECT_TRUE(response.Has("x-should-retry: false")) << response.head;
  const json error = json::parse(response.body)["error"];
  EXPECT_EQ(error["type"], "server_error");
  EXPECT_FALSE(error["message"].get<std::string>().empty());
}

TEST_F(OpenAiRoutesTest, AStreamThatTakesTooLongEndsWithAnErrorEvent) {
  constexpr char kStream[] = R"({"prompt":"a","max_tokens":8000,"ignore_eos":true,"stream":true})";
  RawResponse response;
  int timeout = 20;
  do {  // until there is enough for the start
    response =
        Post("/v1/completions", kStream, fmt::format("X-Request-Timeout-Ms: {}\r\n", timeout));
    timeout *= 2;
  } while (response.status == 504);
  ASSERT_EQ(response.status, 200) << response.body;
  const std::vector<std::string> events = Events(response.body);
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(json::parse(events[events.size() - 2])["error"]["type"], "server_error");
}

TEST_F(OpenAiRoutesTest, ABadTimeoutIsNamed) {
  for (const char* value : {"", "0", "-5", "1.5", "1e3", "soon", "5 s", "2147483648",
                            "99999999999999999999", "\xff", "50\r\nX-Request-Timeout-Ms: 60"}) {
    const RawResponse response = Post("/v1/completions", R"({"prompt":"a","max_tokens":1})",
                                      fmt::format("X-Request-Timeout-Ms: {}\r\n", value));
    EXPECT_EQ(response.status, 400) << value;
    const json error = json::parse(response.body)["error"];
    EXPECT_EQ(error["param"], "x-request-timeout-ms");
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("an integer from 1 to 2147483647"));
  }
  EXPECT_EQ(Post("/v1/completions", R"({"prompt":"a","max_tokens":1})",
                 "X-Request-Timeout-Ms: 2147483647\r\n")
                .status,
            200);
}

TEST_F(OpenAiRoutesTest, TheServersTimeoutCannotBeExtended) {
  const auto server =
      StartServer({.served_model_names = {"m"}, .system_fingerprint = "", .request_timeout = 1ms});
  for (const char* headers : {"", "X-Request-Timeout-Ms: 600000\r\n"}) {
    const RawResponse response =
        RawClient(server->port()).Ask(PostBytes("/v1/completions", kLong, headers));
    EXPECT_EQ(response.status, 504) << response.body;
  }
}

TEST_F(OpenAiRoutesTest, ThePrefixCacheCanBeReset) {
  const std::string body =
      fmt::format(R"({{"prompt":{},"max_tokens":1}})", json(std::vector<int>(100, 1234)).dump());
  const auto cached = [&] {
    return Ask("/v1/completions", body)["usage"]["prompt_tokens_details"]["cached_tokens"]
        .get<int>();
  };
  EXPECT_EQ(cached(), 0);
  EXPECT_GE(cached(), 80);
  EXPECT_EQ(Post("/reset_prefix_cache", "").status, 200);
  EXPECT_EQ(cached(), 0);
}

TEST_F(OpenAiRoutesTest, ClientThatLeavesFreesItsRequests) {
  for (const char* stream : {"true", "false"}) {
    RawClient client(server_->port());
    client.Send(PostBytes(
        "/v1/completions",
        fmt::format(R"({{"prompt":"a","max_tokens":4000,"n":8,"ignore_eos":true,"stream":{}}})",
                    stream)));
    const auto running = [] { return (*small_)->engine().Stats().scheduler.num_running; };
    for (int i = 0; i < 3000 && running() == 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_GT(running(), 0);
    const int64_t tokens_before = (*small_)->engine().Stats().scheduler.generation_tokens;
    client.Close();
    for (int i = 0; i < 3000 && running() > 0; ++i) std::this_thread::sleep_for(10ms);
    EXPECT_EQ(running(), 0);
    EXPECT_LT((*small_)->engine().Stats().scheduler.generation_tokens - tokens_before, 8 * 3900);
  }
}

TEST_F(OpenAiRoutesTest, Models) {
  const json list = json::parse(Get("/v1/models").body);
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][0]["id"], "org/model");
  EXPECT_EQ(list["data"][0]["created"], 123);
  EXPECT_EQ(json::parse(Get("/v1/models/org/model").body), list["data"][0]);
  const RawResponse unknown = Get("/v1/models/org");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(json::parse(unknown.body)["error"]["code"], "model_not_found");
}

TEST_F(OpenAiRoutesTest, TokenizeAndDetokenizeAreInverse) {
  const std::string text = "Gr\u00FC\u00DFe, \u4F60\u597D";
  const json tokens = Ask("/tokenize", json{{"prompt", text}, {"return_token_strs", true}}.dump());
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["tokens"][0], DeployedTokenizer().bos_id());
  EXPECT_EQ(tokens["token_strs"].size(), tokens["tokens"].size());
  EXPECT_EQ(tokens["max_model_len"], 8192);
  const json plain = Ask("/tokenize", json{{"prompt", text}, {"add_special_tokens", false}}.dump());
  EXPECT_TRUE(plain["token_strs"].is_null());
  EXPECT_EQ(Ask("/detokenize", json{{"tokens", plain["tokens"]}}.dump())["prompt"], text);
  const json chat = Ask("/tokenize", fmt::format("{{{}}}", kChat));
  EXPECT_EQ(chat["tokens"][0], DeployedTokenizer().bos_id());
}

}  // namespace
}  // namespace shoal
