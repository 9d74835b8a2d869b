#include "server/service/generation_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/service/field_error.h"
#include "tests/server/service/finish_call.h"
#include "tests/server/service/small_service.h"

namespace shoal {
namespace {

using std::chrono_literals::operator""ms;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

/// One engine for all tests that leave it idle.
class GenerationServiceTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { small_ = new SmallService(); }
  static void TearDownTestSuite() { delete small_; }

  GenerationService& service() { return **small_; }

  absl::Status Refusal(const GenerateCall& call) {
    return service().Start(call, [] {}).status();
  }

  /// Waits until nothing runs or waits any more; false if that takes too long.
  static bool BecomesIdle(GenerationService& service) {
    for (int i = 0; i < 6000; ++i) {
      const EngineStats stats = service.engine().Stats();
      if (stats.scheduler.num_running == 0 && stats.scheduler.num_waiting == 0) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }

 private:
  static inline SmallService* small_ = nullptr;
};

TEST_F(GenerationServiceTest, TextIsTheDecodedTokens) {
  const Result result = Finish(service(), Greedy("one two", 20));
  const Choice& choice = result.choices[0];
  ASSERT_THAT(choice.tokens, SizeIs(20));
  EXPECT_EQ(choice.text, DeployedTokenizer().Decode(choice.ids(), true));
  EXPECT_EQ(choice.last.finish_reason, FinishReason::kLength);
  EXPECT_EQ(choice.tokens[0].logprob, std::nullopt);
  EXPECT_EQ(result.usage.completion_tokens, 20);
}

TEST_F(GenerationServiceTest, TextPromptsGetBosAndTokenIdsDoNot) {
  TokenIds ids = DeployedTokenizer().Encode("one two", Tokenizer::SpecialText::kAsToken);
  const Result without = Finish(service(), Greedy(ids, 8));
  EXPECT_EQ(without.usage.prompt_tokens, std::ssize(ids));
  ids.insert(ids.begin(), DeployedTokenizer().bos_id());
  const Result text = Finish(service(), Greedy("one two", 8));
  EXPECT_EQ(text.usage.prompt_tokens, std::ssize(ids));
  EXPECT_EQ(text.choices[0].text, Finish(service(), Greedy(ids, 8)).choices[0].text);
}

TEST_F(GenerationServiceTest, StopStringAcrossTokensCutsTheTextAndEndsTheRequest) {
  const Choice whole = Finish(service(), Greedy("one two", 40)).choices[0];
  // From the middle of one token to the middle of the next but one.
  const size_t begin = whole.text.size() / 3;
  size_t from = begin;
  while ((whole.text[from] & 0xC0) == 0x80) ++from;
  size_t to = from + 7;
  while ((whole.text[to] & 0xC0) == 0x80) ++to;
  const std::string stop = whole.text.substr(from, to - from);

  GenerateCall call = Greedy("one two", 400);
  call.stop = {"\u0001 never", stop};
  const Result result = Finish(service(), call);
  const Choice& choice = result.choices[0];
  EXPECT_EQ(choice.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(choice.last.finish_reason, FinishReason::kStop);
  EXPECT_EQ(std::get<std::string>(choice.last.stop_reason), stop);
  EXPECT_LT(result.usage.completion_tokens, 40);
  EXPECT_GE(result.usage.completion_tokens, std::ssize(choice.tokens));
  EXPECT_TRUE(BecomesIdle(service()));
}

TEST_F(GenerationServiceTest, StopTokenHasNoTextButALogprob) {
  const Choice whole = Finish(service(), Greedy("one two", 10)).choices[0];
  GenerateCall call = Greedy("one two", 10);
  call.stop_token_ids = {whole.tokens[4].token_id};
  call.logprobs = 1;
  const Choice choice = Finish(service(), call).choices[0];
  EXPECT_EQ(choice.last.finish_reason, FinishReason::kStop);
  EXPECT_EQ(std::get<int32_t>(choice.last.stop_reason), whole.tokens[4].token_id);
  TokenIds text_ids = choice.ids();
  EXPECT_EQ(text_ids.back(), whole.tokens[4].token_id);
  EXPECT_TRUE(choice.tokens.back().logprob);
  text_ids.pop_back();
  EXPECT_EQ(choice.text, DeployedTokenizer().Decode(text_ids, true));
}

TEST_F(GenerationServiceTest, EchoHasPromptAndCompletionWithAlignedLogprobs) {
  const TokenIds prompt = DeployedTokenizer().Encode("Gr\u00FC\u00DFe, \u4F60\u597D world",
                                                     Tokenizer::SpecialText::kAsToken);
  GenerateCall call = Greedy(prompt, 1);
  call.echo = true;
  call.logprobs = 2;
  const Choice choice = Finish(service(), call).choices[0];
  ASSERT_THAT(choice.tokens, SizeIs(prompt.size() + 1));
  EXPECT_EQ(choice.tokens[0].logprob, std::nullopt);
  for (size_t i = 0; i < choice.tokens.size(); ++i) {
    const auto& token = choice.tokens[i];
    if (i < prompt.size()) EXPECT_EQ(token.token_id, prompt[i]);
    if (i == 0) continue;
    ASSERT_TRUE(token.logprob) << i;
    EXPECT_LT(*token.logprob, 0);
    EXPECT_THAT(token.top_logprobs, SizeIs(2));
  }
  EXPECT_EQ(choice.text, DeployedTokenizer().Decode(choice.ids(), true));
  EXPECT_EQ(choice.tokens.back().text_offset, 15u);  // code points of the prompt
  EXPECT_EQ(choice.tokens.back().top_logprobs[0].token_id, choice.tokens.back().token_id);
}

TEST_F(GenerationServiceTest, EchoWithoutTokensScoresThePromptOnly) {
  GenerateCall call = Greedy("one two three", 0);
  call.echo = true;
  const Result plain = Finish(service(), call);
  EXPECT_EQ(plain.choices[0].text, "one two three");
  EXPECT_EQ(plain.choices[0].tokens.back().logprob, std::nullopt);
  EXPECT_EQ(plain.choices[0].last.finish_reason, FinishReason::kLength);
  EXPECT_EQ(plain.usage.completion_tokens, 0);
  call.logprobs = 0;
  EXPECT_TRUE(Finish(service(), call).choices[0].tokens.back().logprob);
}

TEST_F(GenerationServiceTest, ChoicesDifferAndTheFirstIsThatOfASingleOne) {
  GenerateCall call = Greedy("one two", 12);
  call.temperature = 1;
  call.seed = 42;
  const Choice single = Finish(service(), call).choices[0];
  call.n = 3;
  const Result result = Finish(service(), call);
  EXPECT_EQ(result.choices[0].ids(), single.ids());
  EXPECT_NE(result.choices[1].ids(), single.ids());
  EXPECT_NE(result.choices[2].ids(), result.choices[1].ids());
  EXPECT_EQ(result.usage.completion_tokens, 36);
  call.n = 1;
  EXPECT_EQ(result.usage.prompt_tokens, Finish(service(), call).usage.prompt_tokens);
}

TEST_F(GenerationServiceTest, TheServersSeedFixesTheSeriesOfAnswersAndNotEachOne) {
  GenerateCall call = Greedy("one two", 12);
  call.temperature = 1;
  const auto answers = [&](uint64_t seed) {
    GenerationService seeded(&service().engine(), &service().tokenizer(), nullptr, nullptr,
                             {.seed = seed});
    const TokenIds first = Finish(seeded, call).choices[0].ids();
    return std::pair(first, Finish(seeded, call).choices[0].ids());
  };
  const auto [first, second] = answers(7);
  EXPECT_NE(first, second);
  EXPECT_EQ(answers(7), std::pair(first, second));
  EXPECT_NE(answers(8).first, first);
}

TEST_F(GenerationServiceTest, ReplyLosesOneLeadingSpace) {
  const GenerateCall::Conversation conversation = {{"user", "Who are you?"}};
  const TokenIds ids = *service().Encode(conversation, true, true);
  EXPECT_EQ(ids[0], DeployedTokenizer().bos_id());
  GenerateCall raw = Greedy(ids, 2);
  raw.temperature = 2;
  GenerateCall chat = raw;
  chat.prompt = conversation;
  int num_stripped = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    raw.seed = chat.seed = seed;
    const std::string text = Finish(service(), raw).choices[0].text;
    num_stripped += text.starts_with(' ');
    EXPECT_EQ(Finish(service(), chat).choices[0].text, text.substr(text.starts_with(' ')));
  }
  EXPECT_GT(num_stripped, 0);
}

TEST_F(GenerationServiceTest, DestroyingAGenerationFreesItsBlocks) {
  ASSERT_TRUE(BecomesIdle(service()));
  const int32_t free_before = service().engine().Stats().AllBlocks().num_free;
  GenerateCall call = Greedy("one two", 4000);
  call.n = 4;
  std::atomic<bool> alive = true;
  std::atomic<int> late_wakes = 0;
  auto generation = service().Start(call, [&] {
    if (!alive) ++late_wakes;
  });
  ASSERT_TRUE(generation.ok()) << generation.status();
  while ((*generation)->Poll().empty()) std::this_thread::sleep_for(1ms);
  EXPECT_FALSE((*generation)->done());
  generation->reset();
  alive = false;
  EXPECT_TRUE(BecomesIdle(service()));
  EXPECT_EQ(service().engine().Stats().AllBlocks().num_free, free_before);
  EXPECT_EQ(late_wakes, 0);
}

TEST(GenerationService, RefusesWhatDoesNotFitTheContext) {
  EngineConfig config;
  config.max_model_len = 512;
  SmallService small(nullptr, config);
  const auto refusal = [&](const GenerateCall& call) { return small->Start(call, [] {}).status(); };
  absl::Status status = refusal(Greedy(TokenIds(600, 5), 1));
  EXPECT_EQ(FieldOf(status), "prompt");
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("maximum context length is 512 tokens, but the prompt has 600"));
  status = refusal(Greedy(TokenIds(500, 5), 13));
  EXPECT_EQ(FieldOf(status), "max_tokens");
  EXPECT_THAT(std::string(status.message()), HasSubstr("500 and max_tokens is 13"));
  GenerateCall unlimited = Greedy(TokenIds(512, 5), 1);
  unlimited.max_tokens.reset();
  EXPECT_EQ(FieldOf(refusal(unlimited)), "prompt");
  unlimited.prompt = TokenIds(510, 5);
  EXPECT_EQ(Finish(*small, unlimited).usage.completion_tokens, 2);
  const GenerateCall::Conversation talk = {{"user", std::string(4000, 'x')}};
  status = refusal(Greedy(talk, 1));
  EXPECT_EQ(FieldOf(status), "messages");
  EXPECT_THAT(std::string(status.message()), HasSubstr("512 tokens, but the messages have"));
}

TEST_F(GenerationServiceTest, RefusesTokenIdsThatAreNone) {
  const auto field = [this](const std::function<void(GenerateCall&)>& change) {
    GenerateCall call = Greedy("one", 1);
    change(call);
    const absl::Status status = Refusal(call);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(FieldOf(status)));
    return FieldOf(status);
  };
  EXPECT_EQ(field([](auto& call) { call.stop_token_ids = {-1}; }), "stop_token_ids");
  EXPECT_EQ(field([](auto& call) { call.allowed_token_ids = {5, 1 << 30}; }), "allowed_token_ids");
  EXPECT_EQ(field([](auto& call) { call.logit_bias = {{1 << 30, 1}}; }), "logit_bias");
  EXPECT_EQ(field([](auto& call) { call.prompt = TokenIds{1, 1 << 30}; }), "prompt");
  EXPECT_EQ(field([](auto& call) { call.prompt = TokenIds{}; }), "prompt");
}

TEST_F(GenerationServiceTest, RefusesMoreTokensThanThereIsRoomFor) {
  GenerateCall call = Greedy("one", -1);
  EXPECT_EQ(FieldOf(Refusal(call)), "max_tokens");
  call.max_tokens = int64_t{1} << 40;
  EXPECT_EQ(FieldOf(Refusal(call)), "max_tokens");
  call.max_tokens = 5;
  call.min_tokens = 6;
  const absl::Status status = Refusal(call);
  EXPECT_EQ(FieldOf(status), "min_tokens");
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most max_tokens, which is 5, but is 6"));
}

TEST_F(GenerationServiceTest, PromptFoundInTheCacheIsInTheUsage) {
  const TokenIds prompt(100, 7);
  EXPECT_EQ(Finish(service(), Greedy(prompt, 2)).usage.cached_tokens, 0);
  EXPECT_GE(Finish(service(), Greedy(prompt, 2)).usage.cached_tokens, 80);
}

TEST(GenerationService, FullQueueRefusesBeforeThePromptIsLookedAt) {
  EngineConfig config;
  config.max_num_seqs = 1;
  config.max_num_queued_requests = 4;
  SmallService small(nullptr, config);
  const auto start = [&](const GenerateCall& call) { return small->Start(call, [] {}).status(); };
  GenerateCall good = Greedy("one", 2);
  good.n = 2;
  const GenerateCall bad = Greedy(TokenIds{}, 2);
  std::vector<QueueSlot> slots;
  absl::StatusOr<QueueSlot> slot = small->engine().Reserve(1);
  for (; slot.ok(); slot = small->engine().Reserve(1)) slots.push_back(*std::move(slot));
  EXPECT_EQ(start(good).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(start(bad).code(), absl::StatusCode::kResourceExhausted);
  slots.pop_back();
  EXPECT_EQ(start(good).code(), absl::StatusCode::kResourceExhausted) << "half a call was taken";
  EXPECT_EQ(start(bad).code(), absl::StatusCode::kInvalidArgument);
  slots.pop_back();
  EXPECT_EQ(Finish(*small, good).usage.completion_tokens, 4) << "a refusal kept its place";
}

TEST(GenerationService, ACallThatNoQueueHoldsIsRefusedByItsField) {
  EngineConfig config;
  config.max_num_queued_requests = 4;
  SmallService small(nullptr, config);
  const auto refusal = [&](const GenerateCall& call, int num_prompts) {
    const absl::Status status = small->Reserve(call, num_prompts).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return FieldOf(status);
  };
  GenerateCall call = Greedy("one", 2);
  EXPECT_TRUE(small->Reserve(call, 4).ok());
  EXPECT_EQ(refusal(call, 5), "prompt");
  call.n = 5;
  EXPECT_EQ(refusal(call, 1), "n");
  call.n = 16;
  EXPECT_EQ(refusal(call, 64), "n");
  call.n = 1000;
  EXPECT_THAT(std::string(small->Reserve(call, 64).status().message()),
              testing::HasSubstr("at most 16"));
  call.n = 1;
  call.best_of = 5;
  EXPECT_EQ(refusal(call, 1), "best_of");
}

TEST(GenerationService, WhatIsPreparedWaitsForItsSubmission) {
  SmallService small;
  ASSERT_TRUE(small->Prepare(Greedy("never", 2), [] {}).ok());
  std::vector<std::unique_ptr<Generation>> generations;
  for (const char* prompt : {"one", "two"}) {
    auto generation = small->Prepare(Greedy(prompt, 2), [] {});
    ASSERT_TRUE(generation.ok()) << generation.status();
    generations.push_back(*std::move(generation));
  }
  EXPECT_EQ(small->engine().Stats().scheduler.num_waiting, 0);
  auto slot = small->Reserve(Greedy("", 2), 2);
  ASSERT_TRUE(slot.ok()) << slot.status();
  ASSERT_TRUE(small->Submit(*std::move(slot), generations).ok());
  for (const auto& generation : generations) {
    for (generation->Poll(); !generation->done(); generation->Poll()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(generation->usage().completion_tokens, 2);
  }
}

TEST(GenerationService, ObserverHearsOfEveryChoice) {
  struct Recorder final : GenerationObserver {
    void OnFirstToken(double seconds) override {
      EXPECT_GE(seconds, 0);
      ++num_first;
    }
    void OnNextToken(double seconds) override {
      EXPECT_GE(seconds, 0);
      ++num_next;
    }
    void OnFinished(FinishReason reason, absl::StatusCode error, double seconds,
                    std::optional<double> queue_seconds, const Usage& usage) override {
      EXPECT_EQ(error, absl::StatusCode::kOk);
      if (reason == FinishReason::kLength) EXPECT_LE(queue_seconds.value_or(seconds + 1), seconds);
      reasons.push_back(reason);
      num_tokens += usage.completion_tokens;
    }
    int num_first = 0;
    int num_next = 0;
    int64_t num_tokens = 0;
    std::vector<FinishReason> reasons;
  };
  Recorder recorder;
  SmallService small(&recorder);
  GenerateCall call = Greedy("one", 5);
  call.n = 2;
  Finish(*small, call);
  EXPECT_EQ(recorder.num_first, 2);
  EXPECT_EQ(recorder.num_next, 8);
  EXPECT_EQ(recorder.num_tokens, 10);
  EXPECT_THAT(recorder.reasons, ElementsAre(FinishReason::kLength, FinishReason::kLength));
  call.n = 1;
  call.max_tokens = 4000;
  ASSERT_TRUE(small->Start(call, [] {}).ok());
  EXPECT_EQ(recorder.reasons.back(), FinishReason::kCancel);
}

}  // namespace
}  // namespace shoal
