#include "engine/request/token_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>

#include "engine/request/request.h"

namespace shoal {
namespace {

TEST(TokenStream, ShowsTokensInOrder) {
  TokenStream stream;
  stream.Reserve(2, 3);
  EXPECT_TRUE(stream.tokens().empty());
  EXPECT_TRUE(stream.prompt().empty());
  stream.AppendPrompt({.token_id = 1});
  stream.Append({.token_id = 7, .logprob = -1, .top_logprobs = {{8, -0.5f}}});
  stream.Append({.token_id = 9});
  ASSERT_EQ(stream.prompt().size(), 1u);
  ASSERT_EQ(stream.tokens().size(), 2u);
  EXPECT_EQ(stream.tokens()[0].token_id, 7);
  EXPECT_EQ(stream.tokens()[0].top_logprobs[0].token_id, 8);
  EXPECT_EQ(stream.tokens()[1].token_id, 9);
}

TEST(TokenStream, NeverMovesWhatTheReaderHolds) {
  TokenStream stream;
  stream.Reserve(0, 1000);
  stream.Append({.token_id = 1});
  const auto first = stream.tokens();
  for (int i = 1; i < 1000; ++i) stream.Append({.token_id = i});
  EXPECT_EQ(first.data(), stream.tokens().data());
}

TEST(TokenStream, NotifiesOnceForAllChanges) {
  TokenStream stream;
  stream.Reserve(1, 3);
  int wakes = 0;
  stream.SetWake([&wakes] { ++wakes; });
  stream.Notify();
  EXPECT_EQ(wakes, 0);
  stream.AppendPrompt({});
  stream.Append({});
  stream.Append({});
  stream.Notify();
  stream.Notify();
  EXPECT_EQ(wakes, 1);
  stream.Finish({.reason = FinishReason::kStop});
  stream.Notify();
  EXPECT_EQ(wakes, 2);
}

TEST(TokenStream, TellsHowItEnded) {
  TokenStream stream;
  stream.Reserve(0, 1);
  EXPECT_EQ(stream.finish(), nullptr);
  stream.Finish({.reason = FinishReason::kError, .status = absl::InternalError("why")});
  ASSERT_NE(stream.finish(), nullptr);
  EXPECT_EQ(stream.finish()->reason, FinishReason::kError);
  EXPECT_EQ(stream.finish()->status.message(), "why");
}

TEST(TokenStreamDeathTest, RefusesMoreTokensThanItWasMadeFor) {
  TokenStream stream;
  stream.Reserve(0, 1);
  stream.Append({});
  EXPECT_DEATH(stream.Append({}), "a stream for 1 tokens is full");
}

TEST(TokenStream, ReaderSeesWholeTokensWhileTheyAreWritten) {
  constexpr int kTokens = 20'000;
  TokenStream stream;
  stream.Reserve(0, kTokens);
  std::atomic<int> wakes = 0;
  stream.SetWake([&wakes] { wakes.fetch_add(1); });
  std::jthread writer([&stream] {
    for (int i = 0; i < kTokens; ++i) {
      stream.Append({.token_id = i, .top_logprobs = {{i, 0}}});
      stream.Notify();
    }
    stream.Finish({.reason = FinishReason::kLength});
    stream.Notify();
  });
  size_t seen = 0;
  while (seen < kTokens) {
    const bool ended = stream.finish() != nullptr;
    const auto tokens = stream.tokens();
    if (ended)
      ASSERT_EQ(tokens.size(), size_t{kTokens}) << "tokens are complete once the end is set";
    for (; seen < tokens.size(); ++seen) {
      ASSERT_EQ(tokens[seen].token_id, static_cast<int>(seen));
      ASSERT_EQ(tokens[seen].top_logprobs.at(0).token_id, static_cast<int>(seen));
    }
  }
  writer.join();
  EXPECT_EQ(wakes, kTokens + 1);
}

TEST(Request, CostsNothingBeforeItIsAccepted) {
  Request({}, {1}, {.max_tokens = std::numeric_limits<int32_t>::max()});
  Request({}, {1}, {.max_tokens = -1});
}

TEST(Request, CancelsOnceAndForAll) {
  Request request("r", {1, 2}, {.max_tokens = 4, .prompt_logprobs = 0});
  EXPECT_FALSE(request.cancelled());
  request.Cancel();
  request.Cancel();
  EXPECT_TRUE(request.cancelled());
}

}  // namespace
}  // namespace shoal
