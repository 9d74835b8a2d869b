#include "engine/request/prompt_lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <span>
#include <vector>

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;
using testing::ElementsAre;
using testing::IsEmpty;

Tokens Propose(PromptLookup& lookup, const Tokens& tokens, int64_t max_drafts) {
  Tokens drafts;
  lookup.Propose(tokens, max_drafts, drafts);
  return drafts;
}

/// Of sequences that are looked up once.
Tokens Propose(const Tokens& tokens, int64_t max_drafts) {
  PromptLookup lookup(2, 3);
  return Propose(lookup, tokens, max_drafts);
}

TEST(PromptLookup, ProposesWhatFollowedTheLastTokensBefore) {
  EXPECT_THAT(Propose({1, 2, 3, 4, 5, 1, 2}, 2), ElementsAre(3, 4));
}

TEST(PromptLookup, ProposesNothingIfTheyDidNotOccur) {
  EXPECT_THAT(Propose({1, 2, 3, 4, 5, 2, 1}, 4), IsEmpty());
  EXPECT_THAT(Propose({7, 1, 8, 1}, 4), IsEmpty()) << "one token alone is not enough";
  EXPECT_THAT(Propose({}, 4), IsEmpty());
  EXPECT_THAT(Propose({1}, 4), IsEmpty());
  EXPECT_THAT(Propose({1, 1}, 4), IsEmpty());
}

TEST(PromptLookup, PrefersTheLongestMatch) {
  EXPECT_THAT(Propose({9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2}, 1), ElementsAre(3));
}

TEST(PromptLookup, PrefersTheLatestOccurrence) {
  EXPECT_THAT(Propose({1, 2, 3, 1, 2, 4, 1, 2}, 1), ElementsAre(4));
}

TEST(PromptLookup, ProposesNoMoreThanIsKnown) {
  EXPECT_THAT(Propose({1, 2, 3, 1, 2}, 8), ElementsAre(3, 1, 2));
  EXPECT_THAT(Propose({5, 5, 5, 5}, 8), ElementsAre(5));
}

TEST(PromptLookup, ProposesNoMoreThanIsAskedFor) {
  EXPECT_THAT(Propose({1, 2, 3, 1, 2}, 0), IsEmpty());
  EXPECT_THAT(Propose({1, 2, 3, 1, 2}, -1), IsEmpty());
}

TEST(PromptLookup, AppendsToTheDrafts) {
  PromptLookup lookup(1, 1);
  Tokens drafts = {42};
  lookup.Propose(Tokens{1, 2, 1}, 1, drafts);
  EXPECT_THAT(drafts, ElementsAre(42, 2));
}

TEST(PromptLookup, RemembersTokensThatLieElsewhereNow) {
  PromptLookup lookup(2, 2);
  EXPECT_THAT(Propose(lookup, {1, 2, 3}, 4), IsEmpty());
  EXPECT_THAT(Propose(lookup, {1, 2, 3, 1}, 4), IsEmpty());
  EXPECT_THAT(Propose(lookup, {1, 2, 3, 1, 2}, 4), ElementsAre(3, 1, 2));
  EXPECT_THAT(Propose(lookup, {1, 2, 3, 1, 2}, 4), ElementsAre(3, 1, 2));
}

/// By the definition: from the longest n-gram to the shortest, from the latest place to the first.
Tokens Search(const Tokens& tokens, int min_ngram, int max_ngram, int64_t max_drafts) {
  const int64_t size = std::ssize(tokens);
  for (int64_t n = std::min<int64_t>(max_ngram, size); n >= min_ngram; --n) {
    const auto last = tokens.end() - n;
    for (int64_t end = size - 1; end >= n; --end) {
      if (!std::equal(last, tokens.end(), tokens.begin() + end - n)) continue;
      return {tokens.begin() + end, tokens.begin() + std::min(size, end + max_drafts)};
    }
  }
  return {};
}

TEST(PromptLookup, AgreesWithASearchInRandomSequences) {
  std::mt19937 random(7);
  int num_proposals = 0, num_empty = 0;
  for (int round = 0; round < 300; ++round) {
    const int min_ngram = 1 + static_cast<int>(random() % 3);
    const int max_ngram = min_ngram + static_cast<int>(random() % 4);
    const auto vocabulary = 2 + random() % 20;
    PromptLookup lookup(min_ngram, max_ngram);
    Tokens tokens;
    for (int call = 0; call < 30; ++call) {
      for (size_t more = random() % 8; more > 0; --more) {
        tokens.push_back(static_cast<int32_t>(random() % vocabulary));
      }
      const auto max_drafts = static_cast<int64_t>(random() % 6);
      const Tokens expected = Search(tokens, min_ngram, max_ngram, max_drafts);
      ASSERT_EQ(Propose(lookup, tokens, max_drafts), expected);
      ++(expected.empty() ? num_empty : num_proposals);
    }
  }
  EXPECT_GT(num_proposals, 1000);
  EXPECT_GT(num_empty, 1000);
}

TEST(PromptLookupDeathTest, NoticesASequenceThatShrank) {
  PromptLookup lookup(1, 2);
  Propose(lookup, {1, 2, 3}, 1);
  EXPECT_DEATH(Propose(lookup, {1, 2}, 1), "a sequence of 3 tokens has 2 now");
}

TEST(PromptLookupDeathTest, RefusesNgramsOfNoTokens) {
  EXPECT_DEATH(PromptLookup(0, 2), "0 to 2");
  EXPECT_DEATH(PromptLookup(3, 2), "3 to 2");
}

}  // namespace
}  // namespace shoal
