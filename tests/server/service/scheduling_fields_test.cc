#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "server/service/generation_service.h"
#include "tests/server/service/finish_call.h"
#include "tests/server/service/small_service.h"

namespace shoal {
namespace {

using std::chrono_literals::operator""ms;
using testing::IsSupersetOf;

constexpr int64_t kLong = 8000;  // tokens that take longer than the deadlines here

/// How a call with a deadline went.
struct Late {
  std::vector<GenerationDelta> deltas;
  Usage usage;
};

/// Starts `call` with deadlines ever later until it is `good`; a call may be late from the start.
template <typename Good>
Late UntilGood(GenerationService& service, GenerateCall call, const Good& good) {
  for (auto timeout = 20ms;; timeout *= 2) {
    call.deadline = Clock::now() + timeout;
    auto generation = service.Start(call, [] {});
    if (absl::IsDeadlineExceeded(generation.status())) continue;
    EXPECT_TRUE(generation.ok()) << generation.status();
    if (!generation.ok()) return {};
    Late late;
    while (!(*generation)->done()) {
      for (GenerationDelta& delta : (*generation)->Poll()) late.deltas.push_back(std::move(delta));
      std::this_thread::sleep_for(1ms);
    }
    late.usage = (*generation)->usage();
    if (good(late)) return late;
  }
}

struct Recorder final : GenerationObserver {
  void OnFirstToken(double) override {}
  void OnNextToken(double) override {}
  void OnFinished(FinishReason reason, absl::StatusCode error, double,
                  std::optional<double> queue_seconds, const Usage&) override {
    last_reason = reason;
    last_error = error;
    last_ran = queue_seconds.has_value();
  }
  FinishReason last_reason = FinishReason::kStop;
  absl::StatusCode last_error = absl::StatusCode::kOk;
  bool last_ran = false;
};

TEST(SchedulingFields, WhatIsOverAlreadyIsNotStarted) {
  SmallService small;
  GenerateCall call = Greedy("one", 1);
  call.deadline = Clock::now();
  EXPECT_EQ(small->Start(call, [] {}).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(SchedulingFields, ADeadlineEndsWhatRuns) {
  Recorder recorder;
  SmallService small(&recorder);
  const Late late = UntilGood(*small, Greedy("one", kLong),
                              [](const Late& late) { return late.usage.completion_tokens > 0; });
  EXPECT_LT(late.usage.completion_tokens, kLong);
  EXPECT_EQ(late.deltas.back().finish_reason, FinishReason::kError);
  EXPECT_EQ(late.deltas.back().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(recorder.last_reason, FinishReason::kError);
  EXPECT_EQ(recorder.last_error, absl::StatusCode::kDeadlineExceeded);
}

TEST(SchedulingFields, ADeadlineEndsWhatWaits) {
  Recorder recorder;
  EngineConfig config;
  config.max_num_seqs = 1;
  SmallService small(&recorder, config);
  auto blocker = small->Start(Greedy("two", kLong), [] {});
  ASSERT_TRUE(blocker.ok()) << blocker.status();
  while ((*blocker)->Poll().empty()) std::this_thread::sleep_for(1ms);
  const Late late =
      UntilGood(*small, Greedy("one", 4), [](const Late& late) { return !late.deltas.empty(); });
  EXPECT_EQ(late.usage.completion_tokens, 0);
  EXPECT_EQ(late.deltas.back().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(recorder.last_ran);
}

TEST(SchedulingFields, PrefixesAreSharedWithinAKeyAndSaltOnly) {
  SmallService small;
  const auto cached = [&](int api_key, const std::string& salt) {
    GenerateCall call = Greedy(TokenIds(100, 7), 1);
    call.api_key = api_key;
    call.cache_salt = salt;
    return Finish(*small, call).usage.cached_tokens;
  };
  for (const auto& [api_key, salt] : std::vector<std::pair<int, std::string>>{
           {0, ""}, {1, ""}, {0, "a"}, {1, "a"}, {0, "1"}, {0, ":"}, {10, ""}, {0, "0:"}}) {
    EXPECT_EQ(cached(api_key, salt), 0) << api_key << " " << salt;
    EXPECT_GE(cached(api_key, salt), 80) << api_key << " " << salt;
  }
  small->engine().ResetPrefixCache();
  EXPECT_EQ(cached(0, ""), 0);
}

/// Names of the tenants while three callers run: two users of one key and one of another.
std::vector<std::string> TenantNames(FairShare fair_share) {
  SmallService small(nullptr, {}, {.seed = {}, .fair_share = fair_share});
  std::vector<std::unique_ptr<Generation>> running;
  for (const auto& [api_key, user] :
       std::vector<std::pair<int, std::string>>{{0, "ann"}, {0, "bob"}, {1, "ann"}}) {
    GenerateCall call = Greedy("one", kLong);
    call.api_key = api_key;
    call.user = user;
    auto generation = small->Start(call, [] {});
    EXPECT_TRUE(generation.ok()) << generation.status();
    if (generation.ok()) running.push_back(*std::move(generation));
  }
  for (int i = 0; i < 6000; ++i) {
    int num_running = 0;
    std::vector<std::string> names;
    for (const Tenant& tenant : small->engine().Stats().tenants) {
      num_running += tenant.num_running;
      if (tenant.num_running > 0) names.push_back(tenant.name);
    }
    if (num_running == 3) return names;
    std::this_thread::sleep_for(10ms);
  }
  ADD_FAILURE() << "the calls do not run";
  return {};
}

TEST(SchedulingFields, TenantsAreKeysOrTheirUsersOrNobody) {
  using testing::UnorderedElementsAre;
  EXPECT_THAT(TenantNames(FairShare::kKey), UnorderedElementsAre("0", "1"));
  EXPECT_THAT(TenantNames(FairShare::kUser), UnorderedElementsAre("0:ann", "0:bob", "1:ann"));
  EXPECT_THAT(TenantNames(FairShare::kOff), UnorderedElementsAre(""));
}

TEST(SchedulingFields, PrioritiesGoIntoTheQueue) {
  EngineConfig config;
  config.max_num_seqs = 1;
  config.priority_step_seconds = 86400;
  SmallService small(nullptr, config);
  auto blocker = small->Start(Greedy("two", kLong), [] {});
  ASSERT_TRUE(blocker.ok()) << blocker.status();
  GenerateCall call = Greedy("one", 40);
  call.priority = 1;
  auto later = small->Start(call, [] {});
  call.priority = -1;
  auto sooner = small->Start(call, [] {});
  ASSERT_TRUE(later.ok() && sooner.ok());
  blocker->reset();
  while ((*later)->Poll().empty()) std::this_thread::sleep_for(1ms);
  (*sooner)->Poll();
  EXPECT_TRUE((*sooner)->done());
}

TEST(RetryDelay, IsTheTimeUntilTheQueueHasDrained) {
  EXPECT_EQ(RetryDelay(0), 1000ms) << "unknown";
  EXPECT_EQ(RetryDelay(2.5), 2500ms);
  EXPECT_EQ(RetryDelay(1e4), 120'000ms);
  EXPECT_EQ(RetryDelay(1e-9), 1ms);
}

}  // namespace
}  // namespace shoal
