#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/engine/engine_call.h"

namespace shoal {
namespace {

using std::chrono::minutes;
using testing::HasSubstr;

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
  EXPECT_EQ(stats.step_tokens.sum, 40 + 4 + 8);
  EXPECT_EQ(std::accumulate(stats.step_seconds.counts.begin(), stats.step_seconds.counts.end(), 0),
            6);
  EXPECT_GT(stats.step_seconds.sum, 0);
  EXPECT_EQ(stats.scheduler.prompt_tokens, 80);
  EXPECT_EQ(stats.scheduler.prefill_tokens, 48);
  EXPECT_EQ(stats.scheduler.decode_tokens, 4);
  EXPECT_EQ(stats.scheduler.generation_tokens, 6);
  EXPECT_EQ(stats.scheduler.num_ended, 2);
  ASSERT_EQ(stats.blocks.size(), 1u);
  EXPECT_EQ(stats.blocks[0].prefix_queries_tokens, 80);
  EXPECT_EQ(stats.blocks[0].prefix_hits_tokens, 32);
  EXPECT_EQ(stats.blocks[0].num_cached, 2);
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
  EXPECT_EQ(engine->Stats().AllBlocks().num_free, engine->Stats().AllBlocks().num_blocks);
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
  EXPECT_FALSE(engine->Reserve(1).ok());
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
  EXPECT_THAT(refusal({5}, {.typical_p = 0, .max_tokens = 1}), HasSubstr("typical_p is 0"));
  EXPECT_THAT(refusal({5}, {.presence_penalty = 3, .max_tokens = 1}),
              HasSubstr("presence_penalty is 3, expected -2 to 2"));
  EXPECT_THAT(refusal({5}, {.repetition_penalty = 0, .max_tokens = 1}),
              HasSubstr("repetition_penalty is 0"));
  EXPECT_THAT(refusal({5}, {.max_tokens = 4, .min_tokens = 5}),
              HasSubstr("min_tokens is 5, expected 0 to 4"));
  EXPECT_THAT(refusal({5}, {.max_tokens = 1, .logit_bias = {{200, 1}}}),
              HasSubstr("logit_bias holds token id 200, expected 0 to 189"));
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
  EXPECT_EQ(engine->Stats().AllBlocks().num_free, engine->Stats().AllBlocks().num_blocks);
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

TEST(Engine, ASlotIsAPlaceInTheQueueUntilItIsGivenBack) {
  EngineConfig config = SmallConfig();
  config.max_num_queued_requests = 4;
  const auto engine = MakeEngine(config);
  {
    const auto three = engine->Reserve(3);
    ASSERT_TRUE(three.ok());
    EXPECT_EQ(engine->Stats().num_reserved, 3);
    EXPECT_EQ(engine->Reserve(2).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(engine->Reserve(1).ok());
  }
  EXPECT_EQ(engine->Stats().num_reserved, 0);
  EXPECT_TRUE(engine->Reserve(4).ok());
  EXPECT_EQ(engine->Reserve(5).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Engine, RefusesPromptsBeyondTheTokensThatMayWait) {
  EngineConfig config = SmallConfig();
  config.max_num_seqs = 1;
  config.max_num_queued_tokens = 50;
  const auto engine = MakeEngine(config);
  Call running(Prompt(20), {.max_tokens = 3});
  running.HoldEngineAt(2);
  ASSERT_TRUE(running.Submit(*engine).ok());
  running.WaitForHold();
  Call longer_than_the_queue(Prompt(60), {.max_tokens = 1}), next(Prompt(1), {.max_tokens = 1});
  EXPECT_TRUE(longer_than_the_queue.Submit(*engine).ok()) << "nothing else waits";
  const absl::Status refused = next.Submit(*engine);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("60 tokens wait already"));
  running.Release();
  EXPECT_EQ(longer_than_the_queue.Wait().reason, FinishReason::kLength);
  WaitUntilIdle(*engine);
  EXPECT_TRUE(next.Submit(*engine).ok());
}

TEST(Engine, ResettingThePrefixCacheForgetsIt) {
  const auto engine = MakeEngine(SmallConfig());
  Generate(*engine, Prompt(40), {.max_tokens = 1});
  WaitUntilIdle(*engine);
  EXPECT_EQ(engine->Stats().blocks[0].num_cached, 2);
  engine->ResetPrefixCache();
  Call again(Prompt(40), {.max_tokens = 1});
  ASSERT_TRUE(again.Submit(*engine).ok());
  EXPECT_EQ(again.Wait().num_cached_tokens, 0);
}

TEST(Engine, TellsWhatEachTenantUses) {
  const auto engine = MakeEngine(SmallConfig());
  Call call(Prompt(20), {.max_tokens = 3}, {.tenant = "somebody"});
  call.HoldEngineAt(1);
  ASSERT_TRUE(call.Submit(*engine).ok());
  call.WaitForHold();
  call.Release();
  call.Wait();
  WaitUntilIdle(*engine);
  const EngineStats stats = engine->Stats();
  const auto tenant = std::ranges::find(stats.tenants, "somebody", &Tenant::name);
  ASSERT_NE(tenant, stats.tenants.end());
  EXPECT_EQ(tenant->service_tokens, 22);
  EXPECT_EQ(tenant->num_running, 0);
  EXPECT_EQ(tenant->num_blocks, 0);
}

TEST(Engine, ReportsItsProgress) {
  std::vector<std::string> phases;
  const auto engine = Engine::Create(SmallConfig(), [&phases](const LoadStatus& status) {
    EXPECT_GE(status.fraction, 0);
    EXPECT_LE(status.fraction, 1);
    if (phases.empty() || phases.back() != status.phase) phases.push_back(status.phase);
  });
  ASSERT_TRUE(engine.ok());
  EXPECT_THAT(phases,
              testing::ElementsAre("starting", "planning memory", "loading weights", "ready"));
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
  EXPECT_THAT(error([](EngineConfig& c) { c.expert_parallel = 0; }),
              HasSubstr("expert_parallel is 0"));
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
