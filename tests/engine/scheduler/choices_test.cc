#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/engine/scheduler/scheduler_fixture.h"

namespace shoal {
namespace {

using Fixture = SchedulerFixture;
using testing::ElementsAre;

TEST(Scheduler, ChoicesOfOnePromptComputeItOnce) {
  for (const bool ahead : {false, true}) {
    Fixture fixture({.num_blocks = 20, .ahead = ahead});
    std::vector<std::shared_ptr<Request>> choices;
    for (uint64_t seed = 0; seed < 4; ++seed) {
      choices.push_back(
          Fixture::MakeRequest(Prompt(10), {.presence_penalty = 1, .seed = seed, .max_tokens = 5}));
    }
    fixture.scheduler.Add(choices);
    EXPECT_EQ(fixture.scheduler.stats().num_waiting, 4);
    EXPECT_THAT(fixture.Step(), ElementsAre(10));
    EXPECT_EQ(fixture.scheduler.stats().num_running, 4);
    EXPECT_EQ(fixture.num_free(), 20 - 2 - 4) << "two full blocks shared, the third for each";
    EXPECT_EQ(fixture.pools[0].stats().num_shared, 2);
    EXPECT_THAT(fixture.Step(), ElementsAre(1, 1, 1, 1));
    EXPECT_EQ(fixture.step.ranks[0].block_copies.size(), 3u);
    fixture.RunToEnd();
    EXPECT_EQ(fixture.scheduler.stats().prefill_tokens, 10);
    EXPECT_EQ(fixture.num_free(), 20);
    for (const auto& choice : choices) {
      EXPECT_EQ(TokensOf(*choice), TokensWhenAlone(Prompt(10), choice->sampling()));
    }
  }
}

TEST(Scheduler, ChoicesWithoutRoomWaitForTheirTurn) {
  Fixture fixture({.max_num_seqs = 2});
  std::vector<std::shared_ptr<Request>> choices;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    choices.push_back(Fixture::MakeRequest(Prompt(7), {.seed = seed, .max_tokens = 4}));
  }
  fixture.scheduler.Add(choices);
  fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_running, 2);
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 3);
  choices[2]->Cancel();
  fixture.RunToEnd();
  EXPECT_EQ(choices[2]->stream().finish()->reason, FinishReason::kCancel);
  for (const int i : {0, 1, 3, 4}) {
    EXPECT_EQ(TokensOf(*choices[i]), TokensWhenAlone(Prompt(7), choices[i]->sampling()));
  }
}

TEST(Scheduler, AnotherChoiceLeadsWhenTheFirstIsCancelled) {
  for (const int num_steps : {0, 1}) {  // while it waits, and while it reads the prompt
    Fixture fixture({.max_num_batched_tokens = 4});
    std::vector<std::shared_ptr<Request>> choices;
    for (uint64_t seed = 0; seed < 3; ++seed) {
      choices.push_back(Fixture::MakeRequest(Prompt(10), {.seed = seed, .max_tokens = 3}));
    }
    fixture.scheduler.Add(choices);
    for (int i = 0; i < num_steps; ++i) fixture.Step();
    choices[0]->Cancel();
    fixture.RunToEnd();
    EXPECT_EQ(choices[0]->stream().finish()->reason, FinishReason::kCancel);
    for (const int i : {1, 2}) {
      EXPECT_EQ(TokensOf(*choices[i]), TokensWhenAlone(Prompt(10), choices[i]->sampling()));
    }
    EXPECT_EQ(fixture.num_free(), 64);
  }
}

TEST(Scheduler, APromptThatWasComputedOnceIsDiscardedOnce) {
  Fixture fixture({});
  std::vector<std::shared_ptr<Request>> choices;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    choices.push_back(Fixture::MakeRequest(Prompt(10), {.seed = seed, .max_tokens = 5}));
  }
  fixture.scheduler.Add(choices);
  const ScheduledStep step = fixture.scheduler.Schedule();
  for (const auto& choice : choices) choice->Cancel();
  fixture.scheduler.Schedule();
  fixture.scheduler.Update(fixture.model.Run(step));
  EXPECT_EQ(fixture.scheduler.stats().discarded_tokens, 10);
}

TEST(Scheduler, DraftsThatAreRightSaveSteps) {
  std::vector<int64_t> num_steps;
  std::vector<Tokens> tokens;
  for (const int32_t num_drafts : {0, 4}) {
    Fixture fixture({.num_speculative_tokens = num_drafts});
    const auto request = fixture.Add(Prompt(30), {.max_tokens = 100});
    for (num_steps.push_back(0); !fixture.scheduler.idle(); ++num_steps.back()) fixture.Step();
    tokens.push_back(TokensOf(*request));
    const SchedulerStats stats = fixture.scheduler.stats();
    EXPECT_EQ(stats.drafted_tokens > 0, num_drafts > 0);
    EXPECT_EQ(num_steps.back(), 100 - stats.accepted_tokens);
    EXPECT_EQ(stats.discarded_tokens, stats.drafted_tokens - stats.accepted_tokens);
    EXPECT_EQ(stats.decode_tokens, 99);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_LT(num_steps[1], num_steps[0]);
}

TEST(Scheduler, ChoosesNoStopTokenBeforeMinTokens) {
  Tokens stops;
  for (int32_t id = 0; id < ContextModel::kVocabSize; ++id) stops.push_back(id);
  const int32_t left_over = stops.back();
  stops.pop_back();
  Fixture fixture({});
  const auto request =
      fixture.Add(Prompt(5), {.max_tokens = 9, .min_tokens = 4, .stop_token_ids = stops});
  fixture.RunToEnd();
  const Tokens tokens = TokensOf(*request);
  ASSERT_GE(tokens.size(), 5u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(tokens[i], left_over);
}

/// Allows each token but once, from a small set.
class OncePerToken final : public TokenMask {
 public:
  explicit OncePerToken(int32_t num_tokens) : num_tokens_(num_tokens) {}
  bool Allow(std::span<const int32_t> generated, std::span<int32_t> allowed) override {
    std::ranges::fill(allowed, 0);
    for (int32_t id = 0; id < num_tokens_; ++id) {
      if (std::ranges::find(generated, id) == generated.end()) allowed[id / 32] |= 1 << (id % 32);
    }
    return std::ssize(generated) < num_tokens_;
  }

 private:
  const int32_t num_tokens_;
};

TEST(Scheduler, MaskSeesEveryTokenBefore) {
  for (const bool ahead : {false, true}) {
    Fixture fixture({.ahead = ahead, .num_speculative_tokens = ahead ? 2 : 0});
    const auto other = fixture.Add(Prompt(4), {.max_tokens = 30});
    const auto all =
        fixture.Add(Prompt(5), {.max_tokens = 6, .mask = std::make_shared<OncePerToken>(6)});
    const auto too_few =
        fixture.Add(Prompt(6), {.max_tokens = 6, .mask = std::make_shared<OncePerToken>(3)});
    fixture.RunToEnd();
    EXPECT_THAT(TokensOf(*all), testing::UnorderedElementsAre(0, 1, 2, 3, 4, 5));
    EXPECT_THAT(TokensOf(*too_few), testing::UnorderedElementsAre(0, 1, 2));
    EXPECT_EQ(too_few->stream().finish()->reason, FinishReason::kError);
    EXPECT_THAT(std::string(too_few->stream().finish()->status.message()),
                testing::HasSubstr("no token may follow"));
    EXPECT_EQ(TokensOf(*other), TokensWhenAlone(Prompt(4), {.max_tokens = 30}));
  }
}

TEST(Scheduler, ForksOfALeaderThatStillReadsWait) {
  Fixture fixture({.max_num_seqs = 4, .max_num_batched_tokens = 4});
  std::vector<std::shared_ptr<Request>> choices;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    choices.push_back(Fixture::MakeRequest(Prompt(10), {.seed = seed, .max_tokens = 3}));
  }
  fixture.scheduler.Add(choices);
  fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_running, 1);
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 5);
  EXPECT_EQ(fixture.scheduler.Tenants().at(0).num_waiting, 5);
  choices[5]->Cancel();
  fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 4);
  fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_running, 4);
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 1);
  fixture.RunToEnd();
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 0);
}

TEST(Scheduler, ManyChoicesDoNotDelayAnotherTenant) {
  Fixture fixture({.max_num_seqs = 4});
  for (int call = 0; call < 3; ++call) {
    std::vector<std::shared_ptr<Request>> choices;
    for (uint64_t seed = 0; seed < 16; ++seed) {
      choices.push_back(
          Fixture::MakeRequest(Prompt(8), {.seed = seed, .max_tokens = 10}, {.tenant = "greedy"}));
    }
    fixture.scheduler.Add(choices);
  }
  fixture.Step();
  const auto modest = fixture.Add(Prompt(5, 30), {.max_tokens = 2}, {.tenant = "modest"});
  int num_steps = 0;
  for (; modest->stream().tokens().empty(); ++num_steps) fixture.Step();
  EXPECT_LE(num_steps, 12) << "as soon as somebody leaves";
}

}  // namespace
}  // namespace shoal
