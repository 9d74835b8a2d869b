// StreamOracle: everybody gets what they get alone, once, and a reason for the end.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "tests/engine/scheduler/scheduler_fixture.h"
#include "tests/engine/scheduler/watchlist.h"

namespace shoal {

class StreamOracle {
 public:
  explicit StreamOracle(const SchedulerFixture::Options& options) : options_(options) {}

  /// What came since the last check. `aborting`: the scheduler was just told to abort all.
  void Check(Watched& watched, bool aborting) {
    TokenStream& stream = watched.stream();
    EXPECT_EQ(watched.NumChanges(), watched.num_woken) << "its reader was not woken";
    Compare(stream.prompt(), watched.alone.prompt, true, watched.num_prompt_checked);
    const bool has_logprobs = watched.request->sampling().logprobs >= 0;
    num_tokens_ += stream.tokens().size() - watched.num_checked;
    Compare(stream.tokens(), watched.alone.tokens, has_logprobs, watched.num_checked);
    if (watched.ended()) CheckFinish(watched, *stream.finish(), aborting);
  }

  /// After Schedule() was called at `called` and came back: whoever was due then has ended.
  static void CheckDue(const Watched& watched, Clock::time_point called) {
    const Request& request = *watched.request;
    if (!request.cancelled() && request.scheduling().deadline > called) return;
    EXPECT_TRUE(watched.ended()) << "request " << watched.number << " was due";
  }

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_cached_tokens() const { return num_cached_tokens_; }
  int64_t num_ended() const { return num_ended_; }

  using Ends = std::map<std::string, int64_t>;
  const Ends& ends() const { return ends_; }  // by kind

 private:
  static void Compare(std::span<const TokenOutput> got, std::span<const TokenLogprob> alone,
                      bool has_logprobs, size_t& num_checked) {
    ASSERT_LE(got.size(), alone.size());
    for (; num_checked < got.size(); ++num_checked) {
      EXPECT_EQ(got[num_checked].token_id, alone[num_checked].token_id);
      EXPECT_EQ(got[num_checked].logprob, has_logprobs ? alone[num_checked].logprob : 0);
    }
  }

  void CheckFinish(const Watched& watched, const FinishInfo& finish, bool aborting) {
    ++num_ended_;
    EXPECT_EQ(finish.status.ok(), finish.reason != FinishReason::kError);
    EXPECT_EQ(finish.first_scheduled != Clock::time_point(), watched.begun);
    EXPECT_EQ(finish.num_cached_tokens % options_.block_size, 0);
    EXPECT_LT(finish.num_cached_tokens, watched.request->prompt_token_ids().size());
    if (!options_.enable_prefix_caching) EXPECT_EQ(finish.num_cached_tokens, 0);
    num_cached_tokens_ += finish.num_cached_tokens;
    ++ends_[CheckReason(watched, finish, aborting)];
  }

  /// Returns the name of the reason.
  static std::string CheckReason(const Watched& watched, const FinishInfo& finish, bool aborting) {
    const Request& request = *watched.request;
    if (finish.reason == FinishReason::kCancel) {
      EXPECT_TRUE(request.cancelled());
      return "cancelled";
    }
    if (finish.status.code() == absl::StatusCode::kDeadlineExceeded) {
      EXPECT_LE(request.scheduling().deadline, Clock::now());
      return "late";
    }
    if (finish.status.code() == absl::StatusCode::kUnavailable) {
      EXPECT_TRUE(aborting);
      return "aborted";
    }
    EXPECT_EQ(finish.reason, watched.alone.reason);
    EXPECT_EQ(watched.num_checked, watched.alone.tokens.size());
    if (!finish.status.ok()) return "without a next token";
    EXPECT_EQ(watched.num_prompt_checked, watched.alone.prompt.size());
    return finish.reason == FinishReason::kStop ? "at a stop token" : "at max_tokens";
  }

  const SchedulerFixture::Options& options_;
  int64_t num_tokens_ = 0;
  int64_t num_cached_tokens_ = 0;
  int64_t num_ended_ = 0;
  Ends ends_;
};

}  // namespace shoal
