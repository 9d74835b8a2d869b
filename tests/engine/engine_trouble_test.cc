// What goes wrong around the engine: devices fail, clients leave or are in a hurry.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <random>
#include <thread>

#include "tests/engine/engine_call.h"
#include "tests/engine/no_repeat.h"

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

/// Any sampling, so that all parts of the engine are at work.
SamplingParams RandomSampling(std::mt19937& random) {
  SamplingParams sampling = {.seed = random(), .max_tokens = 1 + static_cast<int>(random() % 20)};
  sampling.presence_penalty = random() % 4 == 0 ? 0.5f : 0;
  sampling.repetition_penalty = random() % 4 == 0 ? 1.2f : 1;
  sampling.stop_token_ids = {static_cast<int32_t>(random() % 200)};
  sampling.min_tokens = random() % 4 == 0 ? sampling.max_tokens : 0;
  if (random() % 4 == 0) sampling.mask = std::make_shared<NoRepeat>();
  sampling.prompt_logprobs = random() % 6 == 0 ? 1 : -1;
  return sampling;
}

/// How the choices of many clients ended.
struct Ends {
  std::atomic<int> num_whole = 0, num_cancelled = 0, num_late = 0;

  void Count(const absl::Status& status, FinishReason reason) {
    const bool is_late = status.code() == absl::StatusCode::kDeadlineExceeded;
    EXPECT_TRUE(status.ok() || is_late) << status.ToString();
    ++(is_late ? num_late : reason == FinishReason::kCancel ? num_cancelled : num_whole);
  }
};

/// One client: some calls, one after the other, of which it gives up some.
void RunClient(Engine& engine, uint32_t client, Ends& ends) {
  std::mt19937 random(client);
  for (int i = 0; i < 4; ++i) {
    SchedulingParams scheduling = {.tenant = fmt::to_string(client % 5)};
    if (random() % 3 == 0) {
      scheduling.deadline = Clock::now() + std::chrono::milliseconds(1 + random() % 40);
    }
    const Tokens prompt = Prompt(1 + static_cast<int32_t>(random() % 30));
    std::vector<std::unique_ptr<Call>> choices;
    for (int n = random() % 3 == 0 ? 3 : 1; n > 0; --n) {
      choices.push_back(std::make_unique<Call>(prompt, RandomSampling(random), scheduling));
    }
    const absl::Status submitted = Call::Submit(engine, choices);
    if (random() % 3 == 0) choices[random() % choices.size()]->request().Cancel();
    if (random() % 8 == 0) engine.ResetPrefixCache();
    if (random() % 8 == 0) engine.Stats();
    for (const auto& choice : choices) {
      if (submitted.ok()) choice->Wait();
      const FinishInfo* finish = choice->request().stream().finish();
      ends.Count(submitted.ok() ? finish->status : submitted,
                 submitted.ok() ? finish->reason : FinishReason::kError);
    }
  }
}

TEST(Engine, ServesManyThreadsWithRandomCancelsAndDeadlines) {
  for (const bool ahead : {false, true}) {
    EngineConfig config = SmallConfig();
    config.max_model_len = 64;
    config.max_num_seqs = 8;
    config.block_size = 8;
    config.kv_cache_memory_bytes = 320 * kBytesPerToken;
    config.schedule_conservativeness = 0.3;
    config.expert_parallel = 2;
    config.async_scheduling = ahead;
    config.num_speculative_tokens = ahead ? 0 : 2;
    const auto engine = MakeEngine(config);
    Ends ends;
    std::vector<std::jthread> clients;
    for (uint32_t client = 0; client < 64; ++client) {
      clients.emplace_back([&, client] { RunClient(*engine, client, ends); });
    }
    clients.clear();
    EXPECT_GE(ends.num_whole + ends.num_cancelled + ends.num_late, 64 * 4);
    EXPECT_GT(ends.num_whole, 0);
    WaitUntilIdle(*engine);
    const EngineStats stats = engine->Stats();
    EXPECT_EQ(stats.AllBlocks().num_free, stats.AllBlocks().num_blocks);
    EXPECT_EQ(stats.num_reserved, 0);
    for (const Tenant& tenant : stats.tenants) EXPECT_EQ(tenant.num_blocks, 0);
  }
}

}  // namespace
}  // namespace shoal
