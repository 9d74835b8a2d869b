#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "server/service/generation_service.h"
#include "tests/server/service/finish_call.h"
#include "tests/server/service/small_service.h"

namespace shoal {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::SizeIs;

/// Calls whose sampling fields are told apart by what comes out of a real model.
class SamplingFieldsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { small_ = new SmallService(); }
  static void TearDownTestSuite() { delete small_; }

  static Result Ask(const GenerateCall& call) { return Finish(**small_, call); }
  static TokenIds IdsOf(const GenerateCall& call) { return Ask(call).choices[0].ids(); }
  static int32_t eos() { return DeployedTokenizer().eos_id(); }

  /// 24 random tokens.
  static GenerateCall Random(uint64_t seed) {
    GenerateCall call = Greedy("one two", 24);
    call.temperature = 1;
    call.seed = seed;
    return call;
  }

 private:
  static inline SmallService* small_ = nullptr;
};

TEST_F(SamplingFieldsTest, LogitBiasForcesATokenOrForbidsIt) {
  GenerateCall call = Random(1);
  call.logit_bias = {{77, 100}};
  EXPECT_THAT(IdsOf(call), testing::AllOf(SizeIs(24), Each(77)));
  GenerateCall greedy = Greedy("one two", 1);
  const int32_t first = IdsOf(greedy)[0];
  greedy.logit_bias = {{first, -100}};
  EXPECT_NE(IdsOf(greedy)[0], first);
}

TEST_F(SamplingFieldsTest, RepetitionPenaltyDividesWhatCameBefore) {
  GenerateCall call = Greedy("one two", 2);
  call.logit_bias = {{77, 60}, {78, 40}};
  EXPECT_THAT(IdsOf(call), ElementsAre(77, 77));
  call.repetition_penalty = 10;
  EXPECT_THAT(IdsOf(call), ElementsAre(77, 78));
}

TEST_F(SamplingFieldsTest, FrequencyPenaltyGrowsAndPresencePenaltyDoesNot) {
  // One token is so far above all others that only what grows can pull it down.
  GenerateCall call = Greedy("one two", 60);
  call.logit_bias = {{77, 60}};
  call.presence_penalty = 2;
  EXPECT_THAT(IdsOf(call), Each(77));
  call.presence_penalty = 0;
  call.frequency_penalty = 2;
  const TokenIds ids = IdsOf(call);
  EXPECT_GT(std::count(ids.begin(), ids.end(), 77), 20);
  EXPECT_LT(std::count(ids.begin(), ids.end(), 77), 40);
}

TEST_F(SamplingFieldsTest, PresencePenaltyBringsOtherTokens) {
  // Forty tokens that are as likely as each other, but for the model.
  GenerateCall call = Greedy("one two", 60);
  for (int32_t id = 100; id < 140; ++id) call.logit_bias[id] = 60;
  const auto num_different = [](const TokenIds& ids) {
    return std::set(ids.begin(), ids.end()).size();
  };
  const size_t num_plain = num_different(IdsOf(call));
  call.presence_penalty = 2;
  EXPECT_GT(num_different(IdsOf(call)), num_plain);
  call.presence_penalty = -2;
  EXPECT_LT(num_different(IdsOf(call)), num_plain);
}

TEST_F(SamplingFieldsTest, TypicalPIsThatOfTheEngine) {
  GenerateCall call = Random(5);
  const TokenIds plain = IdsOf(call);
  call.typical_p = 0.05;
  EXPECT_NE(IdsOf(call), plain);
}

TEST_F(SamplingFieldsTest, NoStopTokenComesBeforeMinTokens) {
  GenerateCall call = Greedy("one two", 20);
  call.ignore_eos = false;
  call.logit_bias = {{eos(), 100}};
  EXPECT_THAT(IdsOf(call), ElementsAre(eos()));
  call.min_tokens = 5;
  const Result result = Ask(call);
  const TokenIds ids = result.choices[0].ids();
  ASSERT_THAT(ids, SizeIs(6));
  EXPECT_EQ(std::find(ids.begin(), ids.end(), eos()) - ids.begin(), 5);
  EXPECT_EQ(result.choices[0].last.finish_reason, FinishReason::kStop);
}

TEST_F(SamplingFieldsTest, NoStopStringIsFoundBeforeMinTokens) {
  GenerateCall call = Greedy("one two", 20);
  call.logit_bias = {{77, 100}};
  call.stop = {std::string(DeployedTokenizer().TokenBytes(77))};
  EXPECT_EQ(Ask(call).usage.completion_tokens, 1);
  call.min_tokens = 7;
  const Result result = Ask(call);
  EXPECT_EQ(result.usage.completion_tokens, 8);
  EXPECT_EQ(result.choices[0].last.finish_reason, FinishReason::kStop);
  EXPECT_EQ(result.choices[0].text, DeployedTokenizer().Decode(TokenIds(7, 77), true));
}

TEST_F(SamplingFieldsTest, OnlyAllowedTokensAreGenerated) {
  GenerateCall call = Random(7);
  call.n = 2;
  call.allowed_token_ids = {40, 41, 2000, 41};
  for (const Choice& choice : Ask(call).choices) {
    EXPECT_THAT(choice.ids(), SizeIs(24));
    EXPECT_THAT(choice.ids(), Each(testing::AnyOf(40, 41, 2000)));
  }
  call = Greedy("one two", 20);
  call.ignore_eos = false;
  call.logit_bias = {{eos(), 100}};
  call.allowed_token_ids = {40, 41};
  EXPECT_THAT(IdsOf(call), SizeIs(20)) << "EOS is a token like any";
  call.allowed_token_ids.push_back(eos());
  EXPECT_THAT(IdsOf(call), ElementsAre(eos()));
}

TEST_F(SamplingFieldsTest, ChoicesAreThoseOfSingleCallsWithDerivedSeeds) {
  GenerateCall call = Random(11);
  call.logprobs = 3;
  call.n = 4;
  const Result together = Ask(call);
  call.n = 1;
  for (uint64_t i = 0; i < 4; ++i) {
    call.seed = DeriveSeed(11, i);
    const Choice alone = Ask(call).choices[0];
    const Choice& choice = together.choices[i];
    EXPECT_EQ(choice.text, alone.text);
    ASSERT_EQ(choice.ids(), alone.ids());
    for (size_t j = 0; j < alone.tokens.size(); ++j) {
      EXPECT_EQ(choice.tokens[j].logprob, alone.tokens[j].logprob);
      for (size_t k = 0; k < 3; ++k) {
        EXPECT_EQ(choice.tokens[j].top_logprobs[k].logprob,
                  alone.tokens[j].top_logprobs[k].logprob);
      }
    }
  }
}

double MeanLogprob(const Choice& choice) {
  double sum = 0;
  for (const auto& token : choice.tokens) sum += *token.logprob;
  return sum / static_cast<double>(choice.tokens.size());
}

TEST_F(SamplingFieldsTest, BestOfGivesTheLikeliestOfAllBestFirst) {
  GenerateCall call = Random(13);
  call.n = 6;
  call.logprobs = 0;
  std::vector<Choice> all = Ask(call).choices;
  std::sort(all.begin(), all.end(),
            [](const auto& a, const auto& b) { return MeanLogprob(a) > MeanLogprob(b); });
  call.n = 2;
  call.best_of = 6;
  const Result best = Ask(call);
  ASSERT_THAT(best.choices, SizeIs(2));
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(best.choices[i].text, all[i].text);
    EXPECT_EQ(best.choices[i].ids(), all[i].ids());
    EXPECT_EQ(best.choices[i].last.finish_reason, FinishReason::kLength);
    EXPECT_EQ(MeanLogprob(best.choices[i]), MeanLogprob(all[i]));
  }
  EXPECT_EQ(best.usage.completion_tokens, 6 * 24) << "the others were generated too";
  call.logprobs.reset();
  const Result plain = Ask(call);
  EXPECT_EQ(plain.choices[0].text, all[0].text);
  for (const auto& token : plain.choices[0].tokens) EXPECT_EQ(token.logprob, std::nullopt);
}

TEST_F(SamplingFieldsTest, BestOfComparesWhatAStopStringLeft) {
  GenerateCall call = Random(17);
  call.max_tokens = 60;
  call.stop = {"e", "a", " "};
  call.logprobs = 0;
  call.n = 6;
  const Result all = Ask(call);
  call.n = 1;
  call.best_of = 6;
  const Result first = Ask(call), second = Ask(call);
  EXPECT_EQ(first.choices[0].ids(), second.choices[0].ids()) << "ranked by what ran on";
  EXPECT_EQ(first.usage.completion_tokens, all.usage.completion_tokens);
}

}  // namespace
}  // namespace shoal
