#include "engine/execution/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/execution/cpu_ranks.h"
#include "tests/engine/execution/steps.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

WorkerConfig SmallConfig() {
  return {.model_directory = SmallCheckpoint(),
          .make_backend = CpuRanks(),
          .runner = {.model = SmallModel(),
                     .dtype = DType::kBFloat16,
                     .max_num_batched_tokens = 64,
                     .kv_cache = {.block_size = 16, .max_model_len = 64, .max_num_seqs = 2}}};
}

std::unique_ptr<Worker> Launch(const WorkerConfig& config, LoadProgress progress = {}) {
  const ExpertPlacement placement = ExpertPlacement::Create(config.runner.model, 1, 0).value();
  auto worker = Worker::Launch(config, placement, nullptr, std::move(progress));
  SHOAL_CHECK(worker.ok(), "{}", worker.status().ToString());
  return *std::move(worker);
}

std::unique_ptr<Worker> StartWorker() {
  auto worker = Launch(SmallConfig());
  EXPECT_EQ(worker->WaitUntilReady().value().num_kv_blocks, 8);
  return worker;
}

std::vector<SampledRow> TakeFrom(Worker& worker) {
  worker.Ask();
  return worker.Take().value();
}

/// Tokens [begin, end) of a fixed text, with the logprob of the token after each of them.
ScheduledBatch Chunk(int32_t begin, int32_t end) {
  Part part = {.first_position = begin};
  for (int32_t i = begin; i < end; ++i) {
    part.token_ids.push_back(i * 13 % 200);
    part.logits_rows.push_back(i - begin);
    part.sampling.push_back(
        {.forced_token = (i + 1) * 13 % 200, .top_logprobs = 2, .position = i + 1});
  }
  for (int32_t block = 0; block * 16 < end; ++block) part.blocks.push_back(7 - block);
  return BatchOf({part});
}

TEST(Worker, RunsTwoBatchesInFlightInOrder) {
  const auto worker = StartWorker();
  worker->Post(Chunk(0, 20));
  worker->Post(Chunk(20, 50));
  const auto first = TakeFrom(*worker);
  const auto second = TakeFrom(*worker);
  EXPECT_EQ(first.size(), 20u);
  ASSERT_EQ(second.size(), 30u);
  EXPECT_EQ(second[0].token_id, 21 * 13 % 200);
}

TEST(Worker, GivesEachResultOnceItIsAskedFor) {
  const auto worker = StartWorker();
  worker->Post(Chunk(0, 20));
  worker->Ask();
  worker->Post(Chunk(20, 30));
  EXPECT_EQ(worker->Take().value().size(), 20u);
  worker->Post(Chunk(30, 45));
  EXPECT_EQ(TakeFrom(*worker).size(), 10u);
  EXPECT_EQ(TakeFrom(*worker).size(), 15u);
}

TEST(Worker, GivesTheSameRowsInWholeAndInChunks) {
  const auto worker = StartWorker();
  worker->Post(Chunk(0, 50));  // more rows than logits are made for at once
  const auto whole = TakeFrom(*worker);
  ASSERT_EQ(whole.size(), 50u);
  for (int32_t begin = 0; begin < 50; begin += 7) {
    const int32_t end = std::min(begin + 7, 50);
    worker->Post(Chunk(begin, end));
    const auto chunk = TakeFrom(*worker);
    for (int32_t i = begin; i < end; ++i) {
      EXPECT_TRUE(chunk[static_cast<size_t>(i - begin)] == whole[static_cast<size_t>(i)]) << i;
    }
  }
}

TEST(Worker, RunsAnEmptyBatch) {
  const auto worker = StartWorker();
  worker->Post(BatchOf({}));
  EXPECT_TRUE(TakeFrom(*worker).empty());
}

TEST(Worker, EndsWithBatchesInFlight) {
  const auto worker = StartWorker();
  worker->Post(Chunk(0, 64));
  worker->Post(Chunk(0, 64));
}

TEST(Worker, SaysWhyItCannotStart) {
  WorkerConfig config = SmallConfig();
  config.model_directory = "/nowhere";
  const absl::Status missing = Launch(config)->WaitUntilReady().status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), testing::HasSubstr("/nowhere"));

  config = SmallConfig();
  config.runner.kv_cache.memory_bytes = 100;
  EXPECT_EQ(Launch(config)->WaitUntilReady().status().code(), absl::StatusCode::kResourceExhausted);

  config.make_backend = [](int rank, std::unique_ptr<Communicator>) {
    return absl::UnavailableError("no such device");
  };
  EXPECT_EQ(Launch(config)->WaitUntilReady().status().message(), "no such device");
}

TEST(Worker, SaysThatItsDeviceIsTooSmallBeforeItLoads) {
  WorkerConfig config = SmallConfig();
  config.make_backend = CpuRanks(100'000);
  const auto worker = Launch(config, [](int64_t, int64_t) { ADD_FAILURE() << "it loads"; });
  const absl::Status status = worker->WaitUntilReady().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("of which the device has 100000"));
}

TEST(Worker, KnowsWhatItsMemoryIsFor) {
  constexpr int64_t kMemory = int64_t{64} << 20;
  WorkerConfig config = SmallConfig();
  config.make_backend = CpuRanks(kMemory);
  config.runner.kv_cache.memory_bytes = int64_t{1} << 20;
  const MemoryPlan plan = Launch(config)->WaitUntilReady().value();
  EXPECT_EQ(plan.weight_bytes + plan.activation_bytes + plan.kv_cache_bytes + plan.left_bytes,
            kMemory);
  EXPECT_GE(plan.weight_bytes, 2 * SmallModel().num_parameters());
  EXPECT_GT(plan.activation_bytes, 0);
  EXPECT_EQ(plan.num_kv_blocks, (1 << 20) / (16 * KvBytesPerToken(SmallModel(), DType::kBFloat16)));
}

TEST(Worker, ReportsProgressUpToTheEnd) {
  std::vector<std::pair<int64_t, int64_t>> reports;
  const auto worker = Launch(SmallConfig(), [&reports](int64_t done, int64_t total) {
    reports.emplace_back(done, total);
  });
  ASSERT_TRUE(worker->WaitUntilReady().ok());
  ASSERT_FALSE(reports.empty());
  EXPECT_TRUE(std::ranges::is_sorted(reports));
  EXPECT_EQ(reports.back().first, reports.back().second);
}

}  // namespace
}  // namespace shoal
