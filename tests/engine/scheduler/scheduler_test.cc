#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>
#include <utility>

#include "tests/engine/scheduler/scheduler_fixture.h"

namespace shoal {
namespace {

using Fixture = SchedulerFixture;
using testing::ElementsAre;
using testing::IsEmpty;

std::vector<float> PromptLogprobsOf(Request& request) {
  std::vector<float> logprobs;
  for (const TokenOutput& output : request.stream().prompt()) logprobs.push_back(output.logprob);
  return logprobs;
}

TEST(Scheduler, IsIdleWithoutRequests) {
  Fixture fixture({});
  EXPECT_TRUE(fixture.scheduler.idle());
  EXPECT_TRUE(fixture.scheduler.Schedule().empty());
}

TEST(Scheduler, ComputesThePromptThenOneTokenPerStep) {
  Fixture fixture({});
  const auto request = fixture.Add(Prompt(10), {.max_tokens = 3});
  EXPECT_THAT(fixture.Step(), ElementsAre(10));
  EXPECT_EQ(fixture.scheduler.stats().prompt_tokens, 10);
  EXPECT_EQ(fixture.scheduler.stats().generation_tokens, 1);
  EXPECT_THAT(fixture.Step(), ElementsAre(1));
  EXPECT_EQ(fixture.scheduler.stats().prompt_tokens, 10);
  EXPECT_EQ(request->stream().finish(), nullptr);
  EXPECT_THAT(fixture.Step(), ElementsAre(1));
  EXPECT_EQ(TokensOf(*request).size(), 3u);
  ASSERT_NE(request->stream().finish(), nullptr);
  EXPECT_EQ(request->stream().finish()->reason, FinishReason::kLength);
  EXPECT_TRUE(request->stream().finish()->status.ok());
  EXPECT_GE(request->stream().finish()->first_scheduled, request->arrival());
  EXPECT_TRUE(fixture.scheduler.idle());
}

TEST(Scheduler, CutsPromptsToTheTokenBudget) {
  Fixture fixture({.max_num_batched_tokens = 4});
  const Tokens prompt = Prompt(10);
  const auto request = fixture.Add(prompt, {.max_tokens = 2});
  EXPECT_THAT(fixture.Step(), ElementsAre(4));
  EXPECT_THAT(fixture.step.ranks[0].logits_rows, IsEmpty());
  EXPECT_THAT(fixture.Step(), ElementsAre(4));
  EXPECT_THAT(fixture.Step(), ElementsAre(2));
  EXPECT_THAT(fixture.step.ranks[0].logits_rows, ElementsAre(1));
  fixture.RunToEnd();
  EXPECT_EQ(TokensOf(*request), TokensWhenAlone(prompt, {.max_tokens = 2}));
}

TEST(Scheduler, MixesPromptsAndSingleTokensInOneStep) {
  Fixture fixture({.max_num_batched_tokens = 8});
  fixture.Add(Prompt(4), {.max_tokens = 9});
  EXPECT_THAT(fixture.Step(), ElementsAre(4));
  fixture.Add(Prompt(10, 20), {.max_tokens = 9});
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 7));
  fixture.Add(Prompt(3, 30), {.max_tokens = 9});
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 3, 3));
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 1, 1));
}

TEST(Scheduler, RunsAtMostMaxNumSeqs) {
  Fixture fixture({.max_num_seqs = 2});
  for (int i = 0; i < 3; ++i) fixture.Add(Prompt(4, i * 10), {.max_tokens = 2});
  EXPECT_THAT(fixture.Step(), ElementsAre(4, 4));
  EXPECT_EQ(fixture.scheduler.stats().num_running, 2);
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 1);
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 1));
  EXPECT_THAT(fixture.Step(), ElementsAre(4));
}

TEST(Scheduler, TakesTheBlocksOfTheWholePromptAtAdmission) {
  Fixture fixture({.num_blocks = 6, .block_size = 4, .max_num_batched_tokens = 5});
  fixture.Add(Prompt(12), {.max_tokens = 1});
  fixture.Add(Prompt(13, 20), {.max_tokens = 1});
  EXPECT_THAT(fixture.Step(), ElementsAre(5));
  EXPECT_EQ(fixture.num_free(), 3);
  EXPECT_THAT(fixture.Step(), ElementsAre(5));
  EXPECT_THAT(fixture.Step(), ElementsAre(2)) << "the second needs four blocks";
  EXPECT_THAT(fixture.Step(), ElementsAre(5));
}

TEST(Scheduler, LeavesRoomForWhatRunningSequencesAreExpectedToNeed) {
  for (const int32_t num_blocks : {8, 9}) {
    Fixture fixture({.num_blocks = num_blocks, .block_size = 4});
    fixture.Add(Prompt(12), {.max_tokens = 5});
    fixture.Add(Prompt(12, 20), {.max_tokens = 2});
    EXPECT_EQ(fixture.Step().size(), num_blocks == 8 ? 1u : 2u);
    fixture.RunToEnd();
    EXPECT_EQ(fixture.scheduler.stats().num_preemptions, 0);
  }
}

TEST(Scheduler, SchedulesTokensThatAreStillBeingChosen) {
  Fixture fixture({.ahead = true});
  const auto request = fixture.Add(Prompt(6), {.max_tokens = 3});
  EXPECT_THAT(fixture.Step(), ElementsAre(6));
  EXPECT_EQ(TokensOf(*request).size(), 0u);
  EXPECT_THAT(fixture.Step(), ElementsAre(1));
  EXPECT_THAT(fixture.step.ranks[0].token_ids, ElementsAre(ScheduledBatch::kInFlightToken));
  EXPECT_EQ(TokensOf(*request).size(), 1u);
  EXPECT_THAT(fixture.Step(), ElementsAre(1));
  EXPECT_THAT(fixture.Step(), IsEmpty()) << "the last token is in flight";
  EXPECT_EQ(TokensOf(*request), TokensWhenAlone(Prompt(6), {.max_tokens = 3}));
  EXPECT_TRUE(fixture.scheduler.idle());
}

TEST(Scheduler, KeepsTheBlocksOfWhatHasEndedWhileItIsInFlight) {
  const Tokens alone = TokensWhenAlone(Prompt(4), {.max_tokens = 8});
  Fixture fixture({.ahead = true});
  const auto request = fixture.Add(Prompt(4), {.max_tokens = 8, .stop_token_ids = {alone[0]}});
  fixture.Step();
  fixture.Step();
  ASSERT_NE(request->stream().finish(), nullptr);
  EXPECT_EQ(fixture.scheduler.stats().num_running, 1);
  EXPECT_FALSE(fixture.scheduler.idle());
  EXPECT_LT(fixture.num_free(), 64);
  EXPECT_THAT(fixture.Step(), IsEmpty());
  EXPECT_TRUE(fixture.scheduler.idle());
  EXPECT_EQ(fixture.num_free(), 64);
  EXPECT_EQ(fixture.scheduler.stats().discarded_tokens, 1);
}

TEST(Scheduler, ALongPromptLeavesTokensToOthers) {
  Fixture fixture({.max_num_batched_tokens = 16, .long_prefill_token_threshold = 8});
  fixture.Add(Prompt(40), {.max_tokens = 2});
  EXPECT_THAT(fixture.Step(), ElementsAre(16)) << "alone it gets all";
  fixture.Add(Prompt(6, 9), {.max_tokens = 3});
  EXPECT_THAT(fixture.Step(), ElementsAre(8, 6));
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 8)) << "tokens that flow go first";
}

TEST(Scheduler, EndsRequestsWhoseDeadlineHasPassed) {
  Fixture fixture({.max_num_seqs = 1});
  const auto now = Clock::now();
  const auto never = fixture.Add(Prompt(3), {.max_tokens = 40});
  fixture.Step();
  const auto waits = fixture.Add(Prompt(3), {.max_tokens = 4}, {.deadline = now});
  fixture.Step();
  ASSERT_NE(waits->stream().finish(), nullptr) << "though it is not its turn";
  EXPECT_EQ(waits->stream().finish()->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(waits->stream().finish()->first_scheduled, Clock::time_point());
  EXPECT_EQ(never->stream().finish(), nullptr);
  never->Cancel();
  fixture.Step();
  const auto runs = fixture.Add(Prompt(3), {.max_tokens = 200},
                                {.deadline = Clock::now() + std::chrono::milliseconds(20)});
  while (runs->stream().finish() == nullptr && runs->stream().tokens().size() < 199) {
    fixture.Step();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_NE(runs->stream().finish(), nullptr);
  EXPECT_EQ(runs->stream().finish()->status.code(), absl::StatusCode::kDeadlineExceeded);
  fixture.RunToEnd();
  EXPECT_EQ(fixture.num_free(), 64);
}

TEST(Scheduler, SpreadsSequencesOverTheRanks) {
  Fixture fixture({.num_ranks = 4, .num_blocks = 16});
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < 8; ++i) requests.push_back(fixture.Add(Prompt(6, i * 6), {.max_tokens = 4}));
  fixture.Step();
  for (const ScheduledBatch& batch : fixture.step.ranks) {
    EXPECT_EQ(batch.sequences.size(), 2u);
    EXPECT_THAT(batch.rank_tokens, ElementsAre(12, 12, 12, 12));
  }
  fixture.RunToEnd();
  for (const auto& request : requests) {
    EXPECT_EQ(TokensOf(*request), TokensWhenAlone(request->prompt_token_ids(), {.max_tokens = 4}));
  }
}

TEST(Scheduler, PrefersTheRankThatKnowsThePrefix) {
  Fixture fixture({.num_ranks = 2, .num_blocks = 32});
  fixture.Add(Prompt(20), {.max_tokens = 1});
  fixture.RunToEnd();
  const auto again = fixture.Add(Prompt(20), {.max_tokens = 1});
  fixture.RunToEnd();
  EXPECT_EQ(again->stream().finish()->num_cached_tokens, 16);
}

TEST(Scheduler, StopsAtAStopToken) {
  const Tokens alone = TokensWhenAlone(Prompt(5), {.max_tokens = 8});
  Fixture fixture({});
  const auto request = fixture.Add(Prompt(5), {.max_tokens = 8, .stop_token_ids = {-5, alone[2]}});
  fixture.RunToEnd();
  EXPECT_EQ(TokensOf(*request), Tokens(alone.begin(), alone.begin() + 3));
  EXPECT_EQ(request->stream().finish()->reason, FinishReason::kStop);
  EXPECT_EQ(fixture.num_free(), 64);
}

TEST(Scheduler, EndsCancelledRequestsAndFreesTheirBlocks) {
  Fixture fixture({.num_blocks = 4, .max_num_seqs = 1});
  const auto running = fixture.Add(Prompt(9), {.max_tokens = 3});
  const auto waiting = fixture.Add(Prompt(9, 20), {.max_tokens = 3});
  const auto last = fixture.Add(Prompt(9, 30), {.max_tokens = 3});
  fixture.Step();
  running->Cancel();
  waiting->Cancel();
  EXPECT_THAT(fixture.Step(), ElementsAre(9));
  EXPECT_EQ(running->stream().finish()->reason, FinishReason::kCancel);
  EXPECT_EQ(running->stream().tokens().size(), 1u);
  EXPECT_EQ(waiting->stream().finish()->reason, FinishReason::kCancel);
  EXPECT_EQ(last->stream().tokens().size(), 1u);
  last->Cancel();
  EXPECT_TRUE(fixture.scheduler.Schedule().empty());
  EXPECT_EQ(fixture.num_free(), 4);
}

TEST(Scheduler, TakesThePromptFromThePrefixIndex) {
  Fixture fixture({.block_size = 4});
  const auto first = fixture.Add(Prompt(8), {.max_tokens = 1});
  fixture.RunToEnd();
  const auto second = fixture.Add(Prompt(8), {.max_tokens = 1});
  EXPECT_THAT(fixture.Step(), ElementsAre(4)) << "one token at least must be computed";
  EXPECT_EQ(fixture.scheduler.stats().prompt_tokens, 16) << "found or computed";
  EXPECT_EQ(second->stream().finish()->num_cached_tokens, 4);
  EXPECT_EQ(TokensOf(*second), TokensOf(*first));
  EXPECT_EQ(fixture.pools[0].stats().prefix_queries_tokens, 16);
  EXPECT_EQ(fixture.pools[0].stats().prefix_hits_tokens, 4);
}

TEST(Scheduler, CachesGeneratedTokensToo) {
  Fixture fixture({.block_size = 4});
  const auto first = fixture.Add(Prompt(6), {.max_tokens = 8});
  fixture.RunToEnd();
  Tokens longer = Prompt(6);
  for (const int32_t token : TokensOf(*first)) longer.push_back(token);
  const auto second = fixture.Add(longer, {.max_tokens = 1});
  fixture.RunToEnd();
  EXPECT_EQ(second->stream().finish()->num_cached_tokens, 12);
  EXPECT_EQ(TokensOf(*second), TokensWhenAlone(longer, {.max_tokens = 1}));
}

TEST(Scheduler, ComputesEveryTokenWhenPromptLogprobsAreWanted) {
  Fixture fixture({.block_size = 4});
  fixture.Add(Prompt(8), {.max_tokens = 1});
  fixture.RunToEnd();
  fixture.Add(Prompt(8), {.max_tokens = 1, .prompt_logprobs = 0});
  EXPECT_THAT(fixture.Step(), ElementsAre(8));
}

TEST(Scheduler, GivesTheSamePromptLogprobsInChunks) {
  std::vector<std::vector<float>> results;
  for (const int32_t budget : {64, 3, 1}) {
    Fixture fixture({.max_num_batched_tokens = budget});
    const auto request = fixture.Add(Prompt(10), {.max_tokens = 0, .prompt_logprobs = 2});
    fixture.RunToEnd();
    EXPECT_EQ(request->stream().finish()->reason, FinishReason::kLength);
    EXPECT_TRUE(request->stream().tokens().empty());
    results.push_back(PromptLogprobsOf(*request));
    ASSERT_EQ(results.back().size(), 10u);
    EXPECT_EQ(results.back()[0], 0);
    EXPECT_LT(results.back()[1], 0);
    EXPECT_TRUE(request->stream().prompt()[0].top_logprobs.empty());
    EXPECT_EQ(request->stream().prompt()[9].top_logprobs.size(), 2u);
    EXPECT_EQ(request->stream().prompt()[9].token_id, 9);
    EXPECT_EQ(results.back(), results.front());
  }
}

TEST(Scheduler, GivesAsManyAlternativesAsWereAskedFor) {
  Fixture fixture({});
  const auto none = fixture.Add(Prompt(4), {.max_tokens = 1});
  const auto zero = fixture.Add(Prompt(4), {.max_tokens = 1, .logprobs = 0});
  const auto five = fixture.Add(Prompt(4), {.max_tokens = 1, .logprobs = 5});
  fixture.RunToEnd();
  EXPECT_EQ(none->stream().tokens()[0].logprob, 0);
  EXPECT_LT(zero->stream().tokens()[0].logprob, 0);
  EXPECT_TRUE(zero->stream().tokens()[0].top_logprobs.empty());
  ASSERT_EQ(five->stream().tokens()[0].top_logprobs.size(), 5u);
  EXPECT_EQ(five->stream().tokens()[0].top_logprobs[4].token_id, 4);
}

TEST(Scheduler, NonFiniteLogitsEndThatRequestAloneAndItsBlocksAreNotPublished) {
  Fixture fixture({.block_size = 4, .max_num_batched_tokens = 6});
  fixture.model.Poison(49);
  Tokens bad_prompt = Prompt(12);
  bad_prompt[1] = 49;
  const auto bad = fixture.Add(bad_prompt, {.max_tokens = 4});
  const auto good = fixture.Add(Prompt(12, 20), {.max_tokens = 1});
  fixture.RunToEnd();
  ASSERT_EQ(bad->stream().finish()->reason, FinishReason::kError);
  EXPECT_EQ(bad->stream().finish()->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(bad->stream().finish()->status.message()),
              testing::HasSubstr("non-finite logits"));
  EXPECT_EQ(good->stream().finish()->reason, FinishReason::kLength);
  BlockTable table;
  EXPECT_EQ(fixture.pools[0].MatchPrefix("", bad_prompt, 12, table), 0);
  EXPECT_EQ(fixture.num_free(), 64);
}

TEST(Scheduler, NotifiesEachStreamOncePerStep) {
  Fixture fixture({});
  const auto request = std::make_shared<Request>(
      "r", Prompt(5), SamplingParams{.max_tokens = 2, .prompt_logprobs = 0});
  int wakes = 0;
  request->stream().SetWake([&wakes] { ++wakes; });
  request->ReserveStream();
  fixture.scheduler.Add({request});
  fixture.Step();
  EXPECT_EQ(wakes, 1);
  fixture.Step();
  EXPECT_EQ(wakes, 2);
  EXPECT_NE(request->stream().finish(), nullptr);
}

TEST(Scheduler, AbortEndsEveryRequestEvenInFlight) {
  Fixture fixture({.max_num_seqs = 1});
  const auto running = fixture.Add(Prompt(5), {.max_tokens = 3});
  const auto waiting = fixture.Add(Prompt(5), {.max_tokens = 3});
  fixture.scheduler.Schedule();
  fixture.scheduler.AbortAll(absl::UnavailableError("gone"), /*forget_in_flight=*/true);
  for (const auto& request : {running, waiting}) {
    ASSERT_NE(request->stream().finish(), nullptr);
    EXPECT_EQ(request->stream().finish()->status, absl::UnavailableError("gone"));
  }
  EXPECT_TRUE(fixture.scheduler.idle());
  EXPECT_EQ(fixture.num_free(), 64);
  EXPECT_TRUE(fixture.scheduler.Schedule().empty());
}

TEST(Scheduler, AFailedDeviceFreesWhatHadEndedInFlight) {
  Fixture fixture({});
  const auto request = fixture.Add(Prompt(5), {.max_tokens = 3});
  fixture.scheduler.Schedule();
  request->Cancel();
  fixture.scheduler.Schedule();
  ASSERT_NE(request->stream().finish(), nullptr);
  EXPECT_FALSE(fixture.scheduler.idle());
  fixture.scheduler.AbortAll(absl::UnavailableError("gone"), /*forget_in_flight=*/true);
  EXPECT_TRUE(fixture.scheduler.idle());
  EXPECT_EQ(fixture.num_free(), 64);
}

}  // namespace
}  // namespace shoal
