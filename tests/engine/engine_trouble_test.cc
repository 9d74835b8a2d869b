// What goes wrong around the engine: devices fail, clients leave or are in a hurry.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <random>
#include <thread>

#include "tests/engine/engine_call.h"

namespace shoal {
namespace {

using std::chrono::minutes;
using testing::HasSubstr;

/// Fails after some steps, as a device does.
class FailingExecutor final : public Executor {
 public:
  std::span<const int32_t> num_kv_blocks() const override { return {&num_blocks_, 1}; }
  void Post(ScheduledStep step) override { num_rows_.push_back(step.ranks[0].sampling.size()); }
  StepResult Take() override {
    StepResult result;
    if (num_steps_++ == 3) result.status = absl::InternalError("the fan is broken");
    result.rows.push_back(std::vector<SampledRow>(num_rows_.front(), SampledRow{.token_id = 3}));
    num_rows_.pop_front();
    return result;
  }

 private:
  const int32_t num_blocks_ = 1000;
  int num_steps_ = 0;
  std::deque<size_t> num_rows_;
};

TEST(Engine, ADeviceFailureEndsEveryRequestAndIsSaid) {
  for (const bool ahead : {false, true}) {
    EngineConfig config = SmallConfig();
    config.max_num_seqs = 1;
    config.async_scheduling = ahead;
    const auto engine =
        Engine::Create(config, SmallModel(), 4096, std::make_unique<FailingExecutor>());
    Call running(Prompt(20), {.max_tokens = 30}), waiting(Prompt(4), {.max_tokens = 3});
    ASSERT_TRUE(running.Submit(*engine).ok());
    ASSERT_TRUE(waiting.Submit(*engine).ok());
    for (Call* call : {&running, &waiting}) {
      EXPECT_EQ(call->Wait().status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(call->Wait().status.message()), HasSubstr("the fan is broken"));
    }
    EXPECT_EQ(running.tokens().size(), 3u);
    engine->Drain(Clock::now() + minutes(1));
    EXPECT_FALSE(engine->health().ok());
    Call late(Prompt(4), {.max_tokens = 3});
    EXPECT_EQ(late.Submit(*engine).code(), absl::StatusCode::kUnavailable);
  }
}

TEST(Engine, ServesManyThreadsWithRandomCancelsAndDeadlines) {
  EngineConfig config = SmallConfig();
  config.max_model_len = 64;
  config.max_num_seqs = 8;
  config.block_size = 8;
  config.kv_cache_memory_bytes = 320 * kBytesPerToken;
  config.expert_parallel = 2;
  config.num_speculative_tokens = 2;
  const auto engine = MakeEngine(config);
  std::atomic<int> num_whole = 0, num_cancelled = 0, num_late = 0;
  std::vector<std::jthread> clients;
  for (uint32_t client = 0; client < 64; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(client);
      for (int i = 0; i < 4; ++i) {
        SchedulingParams scheduling = {.tenant = fmt::to_string(client % 5)};
        if (random() % 3 == 0) {
          scheduling.deadline = Clock::now() + std::chrono::milliseconds(1 + random() % 40);
        }
        Call call(Prompt(1 + static_cast<int32_t>(random() % 30)),
                  {.max_tokens = 1 + static_cast<int32_t>(random() % 20)}, scheduling);
        const absl::Status submitted = call.Submit(*engine);
        if (random() % 3 == 0) call.request().Cancel();
        const FinishInfo finish =
            submitted.ok() ? call.Wait() : FinishInfo{FinishReason::kError, submitted};
        const bool is_late = finish.status.code() == absl::StatusCode::kDeadlineExceeded;
        EXPECT_TRUE(finish.status.ok() || is_late) << finish.status.ToString();
        ++(is_late ? num_late : finish.reason == FinishReason::kCancel ? num_cancelled : num_whole);
      }
    });
  }
  clients.clear();
  EXPECT_EQ(num_whole + num_cancelled + num_late, 64 * 4);
  EXPECT_GT(num_whole, 0);
  WaitUntilIdle(*engine);
  EXPECT_EQ(engine->Stats().AllBlocks().num_free, engine->Stats().AllBlocks().num_blocks);
  EXPECT_EQ(engine->Stats().num_reserved, 0);
}

}  // namespace
}  // namespace shoal
