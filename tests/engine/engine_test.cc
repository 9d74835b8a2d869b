#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <random>
#include <thread>

#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

using std::chrono::minutes;
using testing::HasSubstr;
using Tokens = std::vector<int32_t>;

constexpr int32_t kLong = 4000;  // tokens; far more than a test has the time to generate
constexpr int64_t kBytesPerToken = 3 * 2 * 2 * 16 * 2;  // layers, K and V, heads, head_dim, bytes

EngineConfig SmallConfig() {
  EngineConfig config;
  config.model_directory = SmallCheckpoint();
  config.threads = 1;
  return config;
}

std::unique_ptr<Engine> MakeEngine(const EngineConfig& config) {
  auto engine = Engine::Create(config, [](const LoadStatus&) {});
  SHOAL_CHECK(engine.ok(), "{}", engine.status().ToString());
  return *std::move(engine);
}

Tokens Prompt(int32_t size, int32_t first = 2) {
  Tokens tokens;
  for (int32_t i = 0; i < size; ++i) tokens.push_back((first + i * 7) % 200);
  return tokens;
}

/// A request whose end can be waited for.
class Call {
 public:
  Call(Tokens prompt, SamplingParams sampling)
      : request_(std::make_shared<Request>("r", std::move(prompt), std::move(sampling))) {
    TokenStream& stream = request_->stream();  // calls back, so it is there
    stream.SetWake([&stream, signals = signals_] {
      signals->num_tokens = stream.tokens().size();
      signals->num_tokens.notify_all();
      if (signals->num_tokens == signals->hold_at) signals->holding.wait(true);
      signals->ended = stream.finish() != nullptr;
      signals->ended.notify_all();
    });
  }

  absl::Status Submit(Engine& engine) { return engine.Submit(request_); }
  void WaitForToken() { signals_->num_tokens.wait(0); }

  /// From that token on the engine thread stands still, until Release().
  void HoldEngineAt(size_t num_tokens) {
    signals_->holding = true;
    signals_->hold_at = num_tokens;
  }
  void WaitForHold() {
    for (size_t n = 0; n < signals_->hold_at; n = signals_->num_tokens) {
      signals_->num_tokens.wait(n);
    }
  }
  void Release() {
    signals_->holding = false;
    signals_->holding.notify_all();
  }

  const FinishInfo& Wait() {
    signals_->ended.wait(false);
    return *request_->stream().finish();
  }
  Request& request() { return *request_; }

  Tokens tokens() const {
    Tokens tokens;
    for (const TokenOutput& output : request_->stream().tokens()) tokens.push_back(output.token_id);
    return tokens;
  }

 private:
  /// Shared with the engine's thread, which may still be notifying when the call has gone.
  struct Signals {
    std::atomic<size_t> num_tokens = 0;
    std::atomic<bool> ended = false;
    std::atomic<bool> holding = false;
    size_t hold_at = 0;
  };

  const std::shared_ptr<Request> request_;
  const std::shared_ptr<Signals> signals_ = std::make_shared<Signals>();
};

/// All that a client sees of a completion.
struct Completion {
  Tokens tokens;
  std::vector<float> logprobs;
  std::vector<float> top_logprobs;
  std::vector<float> prompt_logprobs;

  bool operator==(const Completion&) const = default;
};

Completion CompletionOf(Call& call) {
  Completion completion;
  completion.tokens = call.tokens();
  for (const TokenOutput& output : call.request().stream().prompt()) {
    completion.prompt_logprobs.push_back(output.logprob);
  }
  for (const TokenOutput& output : call.request().stream().tokens()) {
    completion.logprobs.push_back(output.logprob);
    for (const TokenLogprob& top : output.top_logprobs)
      completion.top_logprobs.push_back(top.logprob);
  }
  return completion;
}

Completion Generate(Engine& engine, Tokens prompt, const SamplingParams& sampling) {
  Call call(std::move(prompt), sampling);
  SHOAL_CHECK(call.Submit(engine).ok(), "refused");
  call.Wait();
  return CompletionOf(call);
}

/// Waits until the engine has published that nothing runs.
void WaitUntilIdle(Engine& engine) {
  while (engine.Stats().scheduler.num_running + engine.Stats().scheduler.num_waiting > 0) {
    std::this_thread::yield();
  }
}

TEST(Engine, GreedyGenerationIsDeterministic) {
  const auto engine = MakeEngine(SmallConfig());
  const SamplingParams greedy = {.temperature = 0, .max_tokens = 20, .logprobs = 3};
  const Completion first = Generate(*engine, Prompt(10), greedy);
  EXPECT_EQ(first.tokens.size(), 20u);
  EXPECT_EQ(first.top_logprobs.size(), 60u);
  EXPECT_EQ(first, Generate(*engine, Prompt(10), greedy));
  EXPECT_EQ(first, Generate(*MakeEngine(SmallConfig()), Prompt(10), greedy));
  EXPECT_NE(first.tokens, Generate(*engine, Prompt(10, 3), greedy).tokens);
}

TEST(Engine, EqualSeedsGiveEqualTokens) {
  const auto engine = MakeEngine(SmallConfig());
  const SamplingParams one = {.seed = 1, .max_tokens = 20};
  const SamplingParams two = {.seed = 2, .max_tokens = 20};
  const Completion first = Generate(*engine, Prompt(10), one);
  EXPECT_EQ(first, Generate(*engine, Prompt(10), one));
  EXPECT_NE(first, Generate(*engine, Prompt(10), two));
}

/// Requests of mixed lengths and ways to sample; some share a prefix, and some are longer than
/// several steps of attention over 64 keys.
struct Workload {
  std::vector<Tokens> prompts;
  std::vector<SamplingParams> sampling;

  Workload() {
    std::mt19937 random(7);
    for (int i = 0; i < 20; ++i) {
      const bool is_long = i % 5 == 4;
      const auto size = static_cast<int32_t>(is_long ? 130 + random() % 30 : 1 + random() % 60);
      Tokens prompt = Prompt(size, i % 3);
      prompt.back() = static_cast<int32_t>(random() % 200);
      prompts.push_back(prompt);
      sampling.push_back({.temperature = static_cast<float>(random() % 3) * 0.6f,
                          .top_k = i % 5 == 1 ? 20 : 0,
                          .top_p = i % 5 == 2 ? 0.8f : 1.0f,
                          .min_p = i % 5 == 3 ? 0.05f : 0.0f,
                          .seed = random(),
                          .max_tokens = 1 + static_cast<int32_t>(random() % 40),
                          .logprobs = i % 4,
                          .prompt_logprobs = i == 9 ? 2 : -1});
    }
  }

  std::vector<Completion> RunTogether(Engine& engine) const {
    std::vector<std::unique_ptr<Call>> calls;
    for (size_t i = 0; i < prompts.size(); ++i) {
      calls.push_back(std::make_unique<Call>(prompts[i], sampling[i]));
      SHOAL_CHECK(calls.back()->Submit(engine).ok(), "refused");
    }
    std::vector<Completion> completions;
    for (const auto& call : calls) {
      call->Wait();
      completions.push_back(CompletionOf(*call));
    }
    return completions;
  }

  std::vector<Completion> RunOneByOne(Engine& engine) const {
    std::vector<Completion> completions;
    for (size_t i = 0; i < prompts.size(); ++i) {
      completions.push_back(Generate(engine, prompts[i], sampling[i]));
    }
    return completions;
  }
};

struct Variant {
  const char* name;
  int32_t max_num_batched_tokens = 512;
  int32_t block_size = 16;
  bool enable_prefix_caching = true;
  int threads = 1;
  bool small_cache = false;
};

class EngineInvariance : public testing::TestWithParam<Variant> {};

TEST_P(EngineInvariance, RequestsGetTogetherWhatTheyGetAlone) {
  const Workload workload;
  EngineConfig config = SmallConfig();
  config.enable_prefix_caching = false;
  static const std::vector<Completion> kAlone = workload.RunOneByOne(*MakeEngine(config));

  const Variant& variant = GetParam();
  config.max_num_batched_tokens = variant.max_num_batched_tokens;
  config.block_size = variant.block_size;
  config.enable_prefix_caching = variant.enable_prefix_caching;
  config.threads = variant.threads;
  if (variant.small_cache) {
    config.max_model_len = 200;
    config.kv_cache_memory_bytes = 200 * kBytesPerToken;
  }
  const auto engine = MakeEngine(config);
  for (int round = 0; round < 2; ++round) {
    const std::vector<Completion> together = workload.RunTogether(*engine);
    for (size_t i = 0; i < kAlone.size(); ++i) EXPECT_EQ(together[i], kAlone[i]) << "request " << i;
  }
  WaitUntilIdle(*engine);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.blocks.num_free, stats.blocks.num_blocks);
  EXPECT_EQ(stats.scheduler.num_preemptions > 0, variant.small_cache);
  EXPECT_EQ(stats.blocks.prefix_hits_tokens > 0, variant.enable_prefix_caching);
}

INSTANTIATE_TEST_SUITE_P(
    Variants, EngineInvariance,
    testing::Values(Variant{.name = "Default"}, Variant{.name = "TwoThreads", .threads = 2},
                    Variant{.name = "Chunks7", .max_num_batched_tokens = 7, .block_size = 8},
                    Variant{.name = "Chunks64", .max_num_batched_tokens = 64, .block_size = 32},
                    Variant{.name = "NoPrefixCache",
                            .max_num_batched_tokens = 64,
                            .block_size = 8,
                            .enable_prefix_caching = false},
                    Variant{.name = "Preemption", .block_size = 8, .small_cache = true},
                    Variant{.name = "PreemptionInChunks",
                            .max_num_batched_tokens = 7,
                            .block_size = 8,
                            .enable_prefix_caching = false,
                            .threads = 2,
                            .small_cache = true}),
    [](const auto& info) { return info.param.name; });

TEST(Engine, PromptLogprobsEqualThoseOfGeneration) {
  const auto engine = MakeEngine(SmallConfig());
  const Tokens prompt = Prompt(50);
  const Completion generated =
      Generate(*engine, prompt, {.seed = 5, .max_tokens = 60, .logprobs = 0});
  Tokens all = prompt;
  all.insert(all.end(), generated.tokens.begin(), generated.tokens.end());
  Call forced(all, {.max_tokens = 0, .prompt_logprobs = 0});
  ASSERT_TRUE(forced.Submit(*engine).ok());
  EXPECT_EQ(forced.Wait().reason, FinishReason::kLength);
  const auto outputs = forced.request().stream().prompt();
  ASSERT_EQ(outputs.size(), all.size());
  for (size_t i = 0; i < generated.logprobs.size(); ++i) {
    EXPECT_EQ(outputs[prompt.size() + i].logprob, generated.logprobs[i]) << "token " << i;
    EXPECT_EQ(outputs[prompt.size() + i].token_id, generated.tokens[i]);
  }
}

TEST(Engine, CountsWhatItDoes) {
  const auto engine = MakeEngine(SmallConfig());
  Generate(*engine, Prompt(40), {.max_tokens = 5});
  Generate(*engine, Prompt(40), {.max_tokens = 1});
  WaitUntilIdle(*engine);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.num_steps, 6);
  EXPECT_EQ(stats.prompt_tokens, 80);
  EXPECT_EQ(stats.generation_tokens, 6);
  EXPECT_EQ(stats.last_step_tokens, 8);
  EXPECT_EQ(stats.blocks.prefix_queries_tokens, 80);
  EXPECT_EQ(stats.blocks.prefix_hits_tokens, 32);
}

TEST(Engine, CancelFreesBlocksWithinOneStep) {
  const auto engine = MakeEngine(SmallConfig());
  Call call(Prompt(20), {.max_tokens = kLong});
  ASSERT_TRUE(call.Submit(*engine).ok());
  call.WaitForToken();
  call.request().Cancel();
  const size_t num_tokens = call.tokens().size();
  EXPECT_EQ(call.Wait().reason, FinishReason::kCancel);
  EXPECT_LE(call.tokens().size(), num_tokens + 2) << "the step in flight and one that had begun";
  WaitUntilIdle(*engine);
  EXPECT_EQ(engine->Stats().blocks.num_free, engine->Stats().blocks.num_blocks);
}

TEST(Engine, RefusesRequestsBeyondTheQueueBound) {
  EngineConfig config = SmallConfig();
  config.max_num_seqs = 1;
  config.max_num_queued_requests = 2;
  const auto engine = MakeEngine(config);
  Call running(Prompt(20), {.max_tokens = 3});
  running.HoldEngineAt(2);
  ASSERT_TRUE(running.Submit(*engine).ok());
  running.WaitForHold();
  Call first(Prompt(4), {.max_tokens = 1}), second(Prompt(4), {.max_tokens = 1});
  Call third(Prompt(4), {.max_tokens = 1});
  EXPECT_TRUE(first.Submit(*engine).ok());
  EXPECT_TRUE(second.Submit(*engine).ok());
  const absl::Status refused = third.Submit(*engine);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2 requests wait"));
  running.Release();
  EXPECT_EQ(second.Wait().reason, FinishReason::kLength);
  WaitUntilIdle(*engine);
  EXPECT_TRUE(third.Submit(*engine).ok());
}

TEST(Engine, WhatRunsDoesNotCountAsWaitingDuringItsFirstStep) {
  const auto engine = MakeEngine(SmallConfig());
  Call call(Prompt(20), {.max_tokens = 3});
  call.HoldEngineAt(1);
  ASSERT_TRUE(call.Submit(*engine).ok());
  call.WaitForHold();
  EXPECT_EQ(engine->Stats().scheduler.num_running, 1);
  EXPECT_EQ(engine->Stats().scheduler.num_waiting, 0);
  call.Release();
  call.Wait();
  EXPECT_TRUE(engine->health().ok());
}

TEST(Engine, TellsWhenEachTokenCame) {
  const auto engine = MakeEngine(SmallConfig());
  Call call(Prompt(20), {.max_tokens = 3});
  ASSERT_TRUE(call.Submit(*engine).ok());
  Clock::time_point last = call.Wait().first_scheduled;
  for (const TokenOutput& output : call.request().stream().tokens()) {
    EXPECT_GT(output.time, last);
    last = output.time;
  }
  EXPECT_LT(last, Clock::now());
}

TEST(Engine, NamesWhatIsWrongWithARequest) {
  EngineConfig config = SmallConfig();
  config.vocab_limit = 190;
  config.max_model_len = 100;
  const auto engine = MakeEngine(config);
  const auto refusal = [&engine](Tokens prompt, SamplingParams sampling) {
    const absl::Status status = Call(std::move(prompt), std::move(sampling)).Submit(*engine);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refusal({}, {.max_tokens = 1}), HasSubstr("no tokens"));
  EXPECT_THAT(refusal({5, -1}, {.max_tokens = 1}), HasSubstr("token id -1, expected 0 to 189"));
  EXPECT_THAT(refusal({190}, {.max_tokens = 1}), HasSubstr("token id 190"));
  EXPECT_THAT(refusal({5}, {.max_tokens = 0}), HasSubstr("max_tokens is 0, expected at least 1"));
  EXPECT_THAT(refusal(Tokens(60, 5), {.max_tokens = 41}),
              HasSubstr("60 tokens and max_tokens is 41, together more than the 100"));
  EXPECT_THAT(refusal({5}, {.max_tokens = -1}), HasSubstr("max_tokens is -1"));
  EXPECT_THAT(refusal({5}, {.max_tokens = std::numeric_limits<int32_t>::max()}),
              HasSubstr("max_tokens is 2147483647"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(refusal({5}, {.temperature = nan, .max_tokens = 1}),
              HasSubstr("temperature is nan, expected 0 to 2"));
  EXPECT_THAT(refusal({5}, {.top_k = -1, .max_tokens = 1}), HasSubstr("top_k is -1"));
  EXPECT_THAT(refusal({5}, {.top_p = 0, .max_tokens = 1}), HasSubstr("top_p is 0"));
  EXPECT_THAT(refusal({5}, {.min_p = 1.5f, .max_tokens = 1}), HasSubstr("min_p is 1.5"));
  EXPECT_THAT(refusal({5}, {.max_tokens = 1, .logprobs = 21}), HasSubstr("logprobs is 21"));
  EXPECT_THAT(refusal({5}, {.max_tokens = 1, .prompt_logprobs = -2}),
              HasSubstr("prompt_logprobs is -2, expected -1 to 20"));
  EXPECT_EQ(Generate(*engine, Tokens(60, 5), {.max_tokens = 40}).tokens.size(), 40u);
}

TEST(Engine, GeneratesOnlyTokensThatTheTokenizerHas) {
  EngineConfig config = SmallConfig();
  config.vocab_limit = 10;
  const auto engine = MakeEngine(config);
  const Completion completion =
      Generate(*engine, {5}, {.temperature = 2, .max_tokens = 200, .logprobs = 20});
  EXPECT_EQ(completion.tokens.size(), 200u);
  EXPECT_EQ(completion.top_logprobs.size(), 200u * 10) << "there are no more alternatives";
  EXPECT_LT(*std::ranges::max_element(completion.tokens), 10);
}

TEST(Engine, DrainWaitsForRunningRequestsAndRefusesNewOnes) {
  const auto engine = MakeEngine(SmallConfig());
  Call call(Prompt(20), {.max_tokens = 50});
  ASSERT_TRUE(call.Submit(*engine).ok());
  engine->Drain(Clock::now() + minutes(10));
  EXPECT_EQ(call.Wait().reason, FinishReason::kLength);
  EXPECT_EQ(call.tokens().size(), 50u);
  Call late(Prompt(20), {.max_tokens = 1});
  EXPECT_EQ(late.Submit(*engine).code(), absl::StatusCode::kUnavailable);
}

TEST(Engine, DrainEndsWhatRunsAtItsDeadline) {
  EngineConfig config = SmallConfig();
  config.max_num_seqs = 1;
  const auto engine = MakeEngine(config);
  Call running(Prompt(20), {.max_tokens = kLong}), waiting(Prompt(20), {.max_tokens = kLong});
  ASSERT_TRUE(running.Submit(*engine).ok());
  ASSERT_TRUE(waiting.Submit(*engine).ok());
  engine->Drain(Clock::now());
  EXPECT_EQ(waiting.Wait().reason, FinishReason::kError);
  EXPECT_EQ(waiting.Wait().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(running.Wait().reason, FinishReason::kError);
  EXPECT_EQ(engine->Stats().blocks.num_free, engine->Stats().blocks.num_blocks);
}

TEST(Engine, DestructorEndsRunningRequests) {
  auto engine = MakeEngine(SmallConfig());
  Call call(Prompt(20), {.max_tokens = kLong});
  ASSERT_TRUE(call.Submit(*engine).ok());
  call.WaitForToken();
  engine.reset();
  EXPECT_EQ(call.Wait().reason, FinishReason::kError);
  EXPECT_EQ(call.Wait().status.code(), absl::StatusCode::kUnavailable);
}

TEST(Engine, ServesManyThreadsWithRandomCancels) {
  EngineConfig config = SmallConfig();
  config.max_model_len = 64;
  config.max_num_seqs = 8;
  config.block_size = 8;
  config.kv_cache_memory_bytes = 160 * kBytesPerToken;
  const auto engine = MakeEngine(config);
  std::vector<std::jthread> clients;
  for (uint32_t client = 0; client < 4; ++client) {
    clients.emplace_back([&engine, client] {
      std::mt19937 random(client);
      for (int i = 0; i < 10; ++i) {
        Call call(Prompt(1 + static_cast<int32_t>(random() % 30)),
                  {.max_tokens = 1 + static_cast<int32_t>(random() % 20)});
        ASSERT_TRUE(call.Submit(*engine).ok());
        if (random() % 3 == 0) call.request().Cancel();
        call.Wait();
      }
    });
  }
  clients.clear();
  engine->Drain(Clock::now() + minutes(10));
  EXPECT_EQ(engine->Stats().blocks.num_free, engine->Stats().blocks.num_blocks);
}

TEST(Engine, ReportsItsProgress) {
  std::vector<std::string> phases;
  const auto engine = Engine::Create(SmallConfig(), [&phases](const LoadStatus& status) {
    EXPECT_GE(status.fraction, 0);
    EXPECT_LE(status.fraction, 1);
    if (phases.empty() || phases.back() != status.phase) phases.push_back(status.phase);
  });
  ASSERT_TRUE(engine.ok());
  EXPECT_THAT(phases, testing::ElementsAre("starting", "loading weights", "ready"));
  EXPECT_EQ((*engine)->max_model_len(), 4096);
  EXPECT_EQ((*engine)->model_config(), SmallModel());
}

TEST(Engine, NamesWhatIsWrongWithItsConfig) {
  const auto error = [](auto change) {
    EngineConfig config = SmallConfig();
    change(config);
    const auto engine = Engine::Create(config, [](const LoadStatus&) {});
    return engine.ok() ? "no error" : engine.status().ToString();
  };
  EXPECT_THAT(error([](EngineConfig& c) { c.model_directory = ""; }), HasSubstr("model_directory"));
  EXPECT_THAT(error([](EngineConfig& c) { c.model_directory = "/none"; }), HasSubstr("/none"));
  EXPECT_THAT(error([](EngineConfig& c) { c.dtype = "int3"; }), HasSubstr("dtype is \"int3\""));
  EXPECT_THAT(error([](EngineConfig& c) { c.device = "abacus"; }), HasSubstr("\"abacus\""));
  EXPECT_THAT(error([](EngineConfig& c) { c.expert_parallel = 2; }),
              HasSubstr("expert_parallel is 2"));
  EXPECT_THAT(error([](EngineConfig& c) { c.block_size = 0; }), HasSubstr("block_size is 0"));
  EXPECT_THAT(error([](EngineConfig& c) { c.max_num_seqs = -1; }), HasSubstr("max_num_seqs is -1"));
  EXPECT_THAT(error([](EngineConfig& c) { c.max_num_batched_tokens = 65537; }),
              HasSubstr("max_num_batched_tokens is 65537, expected 1 to 65536"));
  EXPECT_THAT(error([](EngineConfig& c) { c.max_model_len = 4097; }),
              HasSubstr("max_model_len is 4097, the model's context has 4096 tokens"));
  EXPECT_THAT(error([](EngineConfig& c) { c.vocab_limit = 201; }), HasSubstr("201"));
  EXPECT_THAT(error([](EngineConfig& c) { c.kv_cache_memory_bytes = 1000; }),
              HasSubstr("raise kv_cache_memory_bytes"));
}

}  // namespace
}  // namespace shoal
