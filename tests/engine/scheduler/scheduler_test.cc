#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <utility>

#include "tests/engine/scheduler/context_model.h"

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;
using testing::ElementsAre;
using testing::IsEmpty;

Tokens Prompt(int32_t size, int32_t first = 0) {
  Tokens tokens;
  for (int32_t i = 0; i < size; ++i) tokens.push_back((first + i) % ContextModel::kVocabSize);
  return tokens;
}

Tokens TokensOf(Request& request) {
  Tokens tokens;
  for (const TokenOutput& output : request.stream().tokens()) tokens.push_back(output.token_id);
  return tokens;
}

std::vector<float> PromptLogprobsOf(Request& request) {
  std::vector<float> logprobs;
  for (const TokenOutput& output : request.stream().prompt()) logprobs.push_back(output.logprob);
  return logprobs;
}

/// A scheduler, its pool and the device that runs its batches.
struct Fixture {
  struct Options {
    int32_t num_blocks = 64;
    int32_t block_size = 4;
    int32_t max_num_seqs = 16;
    int32_t max_num_batched_tokens = 64;
    bool enable_prefix_caching = true;
  };

  explicit Fixture(const Options& options)
      : pool(options.num_blocks, options.block_size, options.enable_prefix_caching),
        scheduler({options.max_num_seqs, options.max_num_batched_tokens}, &pool),
        model(options.block_size) {}

  std::shared_ptr<Request> Add(Tokens prompt, SamplingParams sampling) {
    auto request = std::make_shared<Request>("r", std::move(prompt), std::move(sampling));
    request->ReserveStream();
    scheduler.Add(request);
    return request;
  }

  /// One whole step. Returns the tokens of each sequence of the batch.
  std::vector<size_t> Step() {
    batch = scheduler.Schedule();
    std::vector<size_t> num_tokens;
    for (const auto& sequence : batch.sequences) num_tokens.push_back(sequence.token_ids.size());
    last = scheduler.Update(model.Run(batch));
    return num_tokens;
  }

  void RunToEnd() {
    for (int i = 0; !scheduler.idle(); ++i) {
      ASSERT_LT(i, 100'000) << "no progress";
      Step();
    }
  }

  BlockPool pool;
  Scheduler scheduler;
  ContextModel model;
  ScheduledBatch batch;
  StepTokens last;
};

Tokens TokensWhenAlone(const Tokens& prompt, const SamplingParams& sampling) {
  Fixture fixture({.num_blocks = 1000});
  const auto request = fixture.Add(prompt, sampling);
  fixture.RunToEnd();
  return TokensOf(*request);
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
  EXPECT_EQ(fixture.last.prompt, 10);
  EXPECT_EQ(fixture.last.generation, 1);
  EXPECT_THAT(fixture.Step(), ElementsAre(1));
  EXPECT_EQ(fixture.last.prompt, 0);
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
  EXPECT_THAT(fixture.batch.sequences[0].logits_rows, IsEmpty());
  EXPECT_THAT(fixture.Step(), ElementsAre(4));
  EXPECT_THAT(fixture.Step(), ElementsAre(2));
  EXPECT_THAT(fixture.batch.sequences[0].logits_rows, ElementsAre(1));
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
  EXPECT_EQ(fixture.pool.num_free(), 3);
  EXPECT_THAT(fixture.Step(), ElementsAre(5));
  EXPECT_THAT(fixture.Step(), ElementsAre(2)) << "the second needs four blocks";
  EXPECT_THAT(fixture.Step(), ElementsAre(5));
}

TEST(Scheduler, LeavesAFreeBlockToEachRunningSequence) {
  for (const int32_t num_blocks : {6, 7}) {
    Fixture fixture({.num_blocks = num_blocks, .block_size = 4});
    fixture.Add(Prompt(12), {.max_tokens = 4});
    fixture.Add(Prompt(12, 20), {.max_tokens = 1});
    EXPECT_EQ(fixture.Step().size(), num_blocks == 6 ? 1u : 2u);
    fixture.RunToEnd();
    EXPECT_EQ(fixture.scheduler.stats().num_preemptions, 0);
  }
}

TEST(Scheduler, PreemptsYoungestWhenBlocksRunOut) {
  Fixture fixture({.num_blocks = 5, .block_size = 4, .enable_prefix_caching = false});
  const auto first = fixture.Add(Prompt(7), {.max_tokens = 8});
  const auto second = fixture.Add(Prompt(6, 20), {.max_tokens = 8});
  EXPECT_THAT(fixture.Step(), ElementsAre(7, 6));
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 1));
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 1));
  EXPECT_EQ(fixture.pool.num_free(), 0);
  EXPECT_THAT(fixture.Step(), ElementsAre(1)) << "the second needed a block";
  EXPECT_EQ(fixture.scheduler.stats().num_preemptions, 1);
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 1);
  EXPECT_EQ(fixture.pool.num_free(), 2);
  fixture.RunToEnd();
  EXPECT_EQ(TokensOf(*first), TokensWhenAlone(Prompt(7), {.max_tokens = 8}));
  EXPECT_EQ(TokensOf(*second), TokensWhenAlone(Prompt(6, 20), {.max_tokens = 8}));
  EXPECT_EQ(fixture.pool.num_free(), 5);
}

TEST(Scheduler, OlderSequencesTakeTheBlocksOfTheYoungest) {
  Fixture fixture({.num_blocks = 6, .block_size = 2, .enable_prefix_caching = false});
  const auto first = fixture.Add(Prompt(4), {.max_tokens = 8});
  fixture.Add(Prompt(5, 20), {.max_tokens = 2});
  EXPECT_THAT(fixture.Step(), ElementsAre(4, 5));
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 1));
  const auto third = fixture.Add(Prompt(3, 30), {.max_tokens = 8});
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 3));
  EXPECT_THAT(fixture.Step(), ElementsAre(1, 1));
  EXPECT_EQ(fixture.pool.num_free(), 0);
  EXPECT_THAT(fixture.Step(), ElementsAre(1));
  EXPECT_EQ(first->stream().tokens().size(), 5u);
  EXPECT_EQ(third->stream().tokens().size(), 2u);
}

TEST(Scheduler, DeliversNothingTwiceAfterPreemption) {
  Fixture fixture({.num_blocks = 8, .block_size = 2, .enable_prefix_caching = false});
  const SamplingParams sampling = {.max_tokens = 6, .prompt_logprobs = 0};
  const auto first = fixture.Add(Prompt(5), sampling);
  const auto second = fixture.Add(Prompt(5, 20), sampling);
  fixture.RunToEnd();
  EXPECT_GT(fixture.scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(TokensOf(*first), TokensWhenAlone(Prompt(5), {.max_tokens = 6}));
  EXPECT_EQ(TokensOf(*second), TokensWhenAlone(Prompt(5, 20), {.max_tokens = 6}));
  EXPECT_EQ(second->stream().prompt().size(), 5u);
}

TEST(Scheduler, StopsAtAStopToken) {
  const Tokens alone = TokensWhenAlone(Prompt(5), {.max_tokens = 8});
  Fixture fixture({});
  const auto request = fixture.Add(Prompt(5), {.max_tokens = 8, .stop_token_ids = {-5, alone[2]}});
  fixture.RunToEnd();
  EXPECT_EQ(TokensOf(*request), Tokens(alone.begin(), alone.begin() + 3));
  EXPECT_EQ(request->stream().finish()->reason, FinishReason::kStop);
  EXPECT_EQ(fixture.pool.num_free(), 64);
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
  EXPECT_EQ(fixture.pool.num_free(), 4);
}

TEST(Scheduler, TakesThePromptFromThePrefixIndex) {
  Fixture fixture({.block_size = 4});
  const auto first = fixture.Add(Prompt(8), {.max_tokens = 1});
  fixture.RunToEnd();
  const auto second = fixture.Add(Prompt(8), {.max_tokens = 1});
  EXPECT_THAT(fixture.Step(), ElementsAre(4)) << "one token at least must be computed";
  EXPECT_EQ(fixture.last.prompt, 8) << "found or computed";
  EXPECT_EQ(second->stream().finish()->num_cached_tokens, 4);
  EXPECT_EQ(TokensOf(*second), TokensOf(*first));
  EXPECT_EQ(fixture.pool.stats().prefix_queries_tokens, 16);
  EXPECT_EQ(fixture.pool.stats().prefix_hits_tokens, 4);
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
  EXPECT_EQ(fixture.pool.MatchPrefix(bad_prompt, 12, table), 0);
  EXPECT_EQ(fixture.pool.num_free(), 64);
}

TEST(Scheduler, NotifiesEachStreamOncePerStep) {
  Fixture fixture({});
  const auto request = std::make_shared<Request>(
      "r", Prompt(5), SamplingParams{.max_tokens = 2, .prompt_logprobs = 0});
  int wakes = 0;
  request->stream().SetWake([&wakes] { ++wakes; });
  request->ReserveStream();
  fixture.scheduler.Add(request);
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
  fixture.scheduler.AbortAll(absl::UnavailableError("gone"));
  for (const auto& request : {running, waiting}) {
    ASSERT_NE(request->stream().finish(), nullptr);
    EXPECT_EQ(request->stream().finish()->status, absl::UnavailableError("gone"));
  }
  EXPECT_TRUE(fixture.scheduler.idle());
  EXPECT_EQ(fixture.pool.num_free(), 64);
  EXPECT_TRUE(fixture.scheduler.Schedule().empty());
}

/// A prompt of one of a few families that share prefixes.
Tokens RandomPrompt(std::mt19937& random, int32_t max_size) {
  Tokens prompt = Prompt(1 + static_cast<int32_t>(random() % max_size), (random() % 3) * 10);
  prompt.back() = static_cast<int32_t>(random() % ContextModel::kVocabSize);
  return prompt;
}

/// Runs a random workload and holds every request against its run alone. Returns the preemptions.
int64_t RunRandomWorkload(const Fixture::Options& options, uint32_t seed) {
  std::mt19937 random(seed);
  Fixture fixture(options);
  const int32_t max_tokens = options.num_blocks * options.block_size;
  std::vector<std::shared_ptr<Request>> requests;
  while (requests.size() < 60 || !fixture.scheduler.idle()) {
    for (size_t n = random() % 3; n > 0 && requests.size() < 60; --n) {
      SamplingParams sampling = {.max_tokens = 1 + static_cast<int32_t>(random() % 12)};
      sampling.seed = random() % 4;
      sampling.prompt_logprobs = random() % 4 == 0 ? 0 : -1;
      sampling.stop_token_ids = {static_cast<int32_t>(random() % ContextModel::kVocabSize)};
      requests.push_back(fixture.Add(RandomPrompt(random, max_tokens - 12), sampling));
    }
    if (random() % 8 == 0 && !requests.empty()) requests[random() % requests.size()]->Cancel();
    fixture.Step();
    EXPECT_LE(fixture.batch.num_tokens(), options.max_num_batched_tokens);
    EXPECT_LE(std::ssize(fixture.batch.sequences), options.max_num_seqs);
  }
  EXPECT_EQ(fixture.pool.num_free(), options.num_blocks);
  for (const auto& request : requests) {
    const Tokens alone = TokensWhenAlone(request->prompt_token_ids(), request->sampling());
    const Tokens tokens = TokensOf(*request);
    if (request->stream().finish()->reason == FinishReason::kCancel) {
      EXPECT_LE(tokens.size(), alone.size());
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), alone.begin()));
    } else {
      EXPECT_EQ(tokens, alone);
    }
  }
  return fixture.scheduler.stats().num_preemptions;
}

TEST(Scheduler, GivesEachRequestWhatItGetsAlone) {
  int64_t num_preemptions = 0;
  uint32_t seed = 0;
  for (const int32_t budget : {1, 7, 64}) {
    for (const int32_t block_size : {1, 4, 8}) {
      for (const bool caching : {false, true}) {
        num_preemptions += RunRandomWorkload({.num_blocks = 64 / block_size,
                                              .block_size = block_size,
                                              .max_num_seqs = 6,
                                              .max_num_batched_tokens = budget,
                                              .enable_prefix_caching = caching},
                                             ++seed);
      }
    }
  }
  EXPECT_GT(num_preemptions, 20);
}

}  // namespace
}  // namespace shoal
