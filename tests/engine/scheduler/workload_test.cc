#include "engine/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <random>
#include <string>
#include <vector>

#include "tests/engine/scheduler/scheduler_fixture.h"

namespace shoal {
namespace {

using Fixture = SchedulerFixture;

TEST(Scheduler, PreemptsWhatIsCheapestToRecompute) {
  Fixture fixture(
      {.num_blocks = 13, .block_size = 4, .enable_prefix_caching = false, .conservativeness = 0});
  const auto cheap = fixture.Add(Prompt(3), {.max_tokens = 20});
  const auto dear = fixture.Add(Prompt(24, 20), {.max_tokens = 20});
  EXPECT_THAT(fixture.Step(), testing::ElementsAre(3, 24));
  while (fixture.scheduler.stats().num_preemptions == 0) fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_running, 1);
  EXPECT_GT(dear->stream().tokens().size(), cheap->stream().tokens().size())
      << "the older one was cheaper";
  fixture.RunToEnd();
  EXPECT_EQ(TokensOf(*cheap), TokensWhenAlone(Prompt(3), {.max_tokens = 20}));
  EXPECT_EQ(TokensOf(*dear), TokensWhenAlone(Prompt(24, 20), {.max_tokens = 20}));
  EXPECT_EQ(fixture.num_free(), 13);
  EXPECT_EQ(fixture.scheduler.stats().num_preemptions, 1);
  EXPECT_GE(fixture.scheduler.stats().recomputed_tokens, 3);
}

TEST(Scheduler, PreemptsNobodyMoreThanTwice) {
  Fixture fixture({.num_blocks = 10,
                   .block_size = 2,
                   .max_num_seqs = 8,
                   .enable_prefix_caching = false,
                   .conservativeness = 0});
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < 30; ++i) {
    requests.push_back(fixture.Add(Prompt(3, i), {.max_tokens = 17}));
  }
  fixture.RunToEnd();
  EXPECT_GT(fixture.scheduler.stats().num_preemptions, 4);
  EXPECT_LE(fixture.scheduler.stats().num_preemptions, 2 * 30);
  for (const auto& request : requests) {
    EXPECT_EQ(TokensOf(*request), TokensWhenAlone(request->prompt_token_ids(), {.max_tokens = 17}));
  }
}

TEST(Scheduler, PreemptsNothingThatIsInFlight) {
  Fixture fixture({.num_blocks = 10,
                   .block_size = 2,
                   .enable_prefix_caching = false,
                   .ahead = true,
                   .conservativeness = 0});
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < 6; ++i) requests.push_back(fixture.Add(Prompt(4, i), {.max_tokens = 9}));
  fixture.RunToEnd();  // the scheduler itself would notice
  EXPECT_GT(fixture.scheduler.stats().num_preemptions, 0);
  for (const auto& request : requests) {
    EXPECT_EQ(TokensOf(*request), TokensWhenAlone(request->prompt_token_ids(), {.max_tokens = 9}));
  }
}

TEST(Scheduler, DeliversNothingTwiceAfterPreemption) {
  Fixture fixture(
      {.num_blocks = 8, .block_size = 2, .enable_prefix_caching = false, .conservativeness = 0});
  const SamplingParams sampling = {.max_tokens = 6, .prompt_logprobs = 0};
  const auto first = fixture.Add(Prompt(5), sampling);
  const auto second = fixture.Add(Prompt(5, 20), sampling);
  fixture.RunToEnd();
  EXPECT_GT(fixture.scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(TokensOf(*first), TokensWhenAlone(Prompt(5), {.max_tokens = 6}));
  EXPECT_EQ(TokensOf(*second), TokensWhenAlone(Prompt(5, 20), {.max_tokens = 6}));
  EXPECT_EQ(first->stream().prompt().size(), 5u);
  EXPECT_EQ(second->stream().prompt().size(), 5u);
}

TEST(Scheduler, DraftsLeaveATokenOfEachStepToEverybody) {
  Fixture fixture({.max_num_batched_tokens = 16, .num_speculative_tokens = 8});
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < 6; ++i) requests.push_back(fixture.Add(Prompt(8, i), {.max_tokens = 30}));
  for (int i = 0; i < 12; ++i) fixture.Step();
  for (const auto& request : requests) EXPECT_GE(request->stream().tokens().size(), 7u);
}

TEST(Scheduler, StepsAheadDoNotSplitThoseWhoWaitForTheirTokens) {
  Fixture fixture({.ahead = true, .num_speculative_tokens = 2});
  for (int i = 0; i < 8; ++i) fixture.Add(Prompt(4, i), {.max_tokens = 20});
  fixture.Step();
  fixture.Step();
  for (int i = 0; i < 12; ++i) {
    const size_t num_sequences = fixture.Step().size();
    EXPECT_TRUE(num_sequences == 0 || num_sequences == 8) << num_sequences;
  }
}

TEST(Scheduler, WhoFlowsTakesTurnsIfAStepHasTooFewTokens) {
  Fixture fixture({.num_blocks = 400, .max_num_batched_tokens = 4});
  std::vector<std::shared_ptr<Request>> choices;
  for (uint64_t seed = 0; seed < 16; ++seed) {
    choices.push_back(Fixture::MakeRequest(Prompt(4), {.seed = seed, .max_tokens = 40}));
  }
  fixture.scheduler.Add(choices);
  for (int i = 0; i < 1 + 4 * 9; ++i) fixture.Step();
  for (const auto& choice : choices) EXPECT_EQ(choice->stream().tokens().size(), 10u);
}

TEST(Scheduler, KeepsCachedPrefixesWhenThereIsNoRoom) {
  Fixture fixture({.num_blocks = 20, .block_size = 4});
  fixture.Add(Prompt(40), {.max_tokens = 1});
  fixture.RunToEnd();
  fixture.Add(Prompt(20, 10), {.max_tokens = 16});
  fixture.Step();
  const int32_t num_cached = fixture.pools[0].stats().num_cached;
  EXPECT_GE(num_cached, 8);
  fixture.Add(Prompt(30, 20), {.max_tokens = 20});
  fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_waiting, 1);
  EXPECT_GE(fixture.pools[0].stats().num_cached, num_cached - 1);
}

TEST(Scheduler, LearnsFromThoseWhoStopAtWhatTheClientSideFound) {
  Fixture fixture({.num_blocks = 20, .block_size = 4});
  for (int i = 0; i < 60; ++i) {
    const auto request = fixture.Add(Prompt(3, i), {.max_tokens = 60});
    fixture.Step();
    request->Complete();
    fixture.RunToEnd();
  }
  for (int i = 0; i < 3; ++i) fixture.Add(Prompt(3, i), {.max_tokens = 60});
  fixture.Step();
  EXPECT_EQ(fixture.scheduler.stats().num_running, 3) << "though only one fits in the end";
}

TEST(Scheduler, RecomputesLittleHoweverSmallTheCacheIs) {
  constexpr int32_t kMaxModelLen = 256;
  for (const int32_t num_requests : {1, 2, 4}) {
    for (const int32_t max_tokens : {60, 156}) {
      std::mt19937 random(5);
      Fixture fixture({.num_blocks = num_requests * kMaxModelLen / 8,
                       .block_size = 8,
                       .max_num_seqs = 32,
                       .max_num_batched_tokens = 64,
                       .long_prefill_token_threshold = 32,
                       .enable_prefix_caching = false,
                       .ahead = true});
      std::vector<std::shared_ptr<Request>> requests;
      for (int i = 0; i < 300; ++i) {
        Tokens prompt = Prompt(1 + static_cast<int32_t>(random() % 100), i);
        SamplingParams sampling = {.seed = random(), .max_tokens = max_tokens};
        sampling.stop_token_ids = {static_cast<int32_t>(random() % ContextModel::kVocabSize)};
        requests.push_back(fixture.Add(std::move(prompt), sampling));
      }
      fixture.RunToEnd();
      const SchedulerStats stats = fixture.scheduler.stats();
      const auto work = static_cast<double>(stats.prefill_tokens + stats.decode_tokens);
      const double share = static_cast<double>(stats.recomputed_tokens) / work;
      fmt::print("cache of {} requests, max_tokens {}: {} preemptions, {:.1f} % recomputed\n",
                 num_requests, max_tokens, stats.num_preemptions, 100 * share);
      EXPECT_LT(share, 0.15);
      for (const auto& request : requests) EXPECT_NE(request->stream().finish(), nullptr);
    }
  }
}

/// A prompt of one of a few families that share prefixes.
Tokens RandomPrompt(std::mt19937& random, int32_t max_size) {
  Tokens prompt = Prompt(1 + static_cast<int32_t>(random() % max_size), (random() % 3) * 10);
  prompt.back() = static_cast<int32_t>(random() % ContextModel::kVocabSize);
  return prompt;
}

/// Any sampling of a random request.
SamplingParams RandomSampling(std::mt19937& random) {
  SamplingParams sampling = {.max_tokens = 1 + static_cast<int32_t>(random() % 12)};
  sampling.seed = random() % 4;
  sampling.presence_penalty = random() % 3 == 0 ? 1 : 0;
  sampling.min_tokens = random() % 4 == 0 ? sampling.max_tokens / 2 : 0;
  sampling.prompt_logprobs = random() % 4 == 0 ? 0 : -1;
  sampling.stop_token_ids = {static_cast<int32_t>(random() % ContextModel::kVocabSize)};
  return sampling;
}

/// Runs a random workload and holds every request against its run alone. Returns the statistics.
SchedulerStats RunRandomWorkload(const Fixture::Options& options, uint32_t seed) {
  std::mt19937 random(seed);
  Fixture fixture(options);
  const int32_t max_tokens = options.num_blocks * options.block_size;
  std::vector<std::shared_ptr<Request>> requests;
  while (requests.size() < 60 || !fixture.scheduler.idle()) {
    for (size_t n = random() % 3; n > 0 && requests.size() < 60; --n) {
      const Tokens prompt = RandomPrompt(random, max_tokens - 12);
      std::vector<std::shared_ptr<Request>> choices;
      for (size_t i = random() % 4 == 0 ? 3 : 1; i > 0; --i) {
        choices.push_back(Fixture::MakeRequest(prompt, RandomSampling(random),
                                               {.priority = static_cast<int32_t>(random() % 3),
                                                .tenant = std::to_string(random() % 3)}));
      }
      requests.insert(requests.end(), choices.begin(), choices.end());
      fixture.scheduler.Add(choices);
    }
    if (random() % 8 == 0 && !requests.empty()) requests[random() % requests.size()]->Cancel();
    fixture.Step();
    EXPECT_LE(fixture.step.num_tokens(), options.max_num_batched_tokens);
    EXPECT_LE(fixture.scheduler.stats().num_running, options.max_num_seqs);
  }
  EXPECT_EQ(fixture.num_free(), options.num_ranks * options.num_blocks);
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
  return fixture.scheduler.stats();
}

TEST(Scheduler, GivesEachRequestWhatItGetsAlone) {
  SchedulerStats sum;
  uint32_t seed = 0;
  for (const int32_t budget : {1, 7, 64}) {
    for (const int32_t block_size : {1, 4, 8}) {
      for (uint32_t flags = 0; flags < 8; ++flags, ++seed) {
        const SchedulerStats stats =
            RunRandomWorkload({.num_ranks = 1 + static_cast<int32_t>(seed % 3),
                               .num_blocks = 64 / block_size,
                               .block_size = block_size,
                               .max_num_seqs = 6,
                               .max_num_batched_tokens = budget,
                               .enable_prefix_caching = (flags & 1) != 0,
                               .ahead = (flags & 2) != 0,
                               .conservativeness = 0,
                               .num_speculative_tokens = (flags & 4) != 0 ? 3 : 0},
                              seed);
        sum.num_preemptions += stats.num_preemptions;
        sum.accepted_tokens += stats.accepted_tokens;
      }
    }
  }
  EXPECT_GT(sum.num_preemptions, 15);
  EXPECT_GT(sum.accepted_tokens, 50);
}

}  // namespace
}  // namespace shoal
