#include "engine/execution/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/execution/steps.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

WorkerConfig SmallConfig() {
  return {.model_directory = SmallCheckpoint(),
          .runner = {.model = SmallModel(),
                     .dtype = DType::kBFloat16,
                     .max_num_batched_tokens = 64,
                     .kv_cache = {.block_size = 16, .max_model_len = 64, .max_num_seqs = 2}}};
}

std::unique_ptr<Worker> Launch(const WorkerConfig& config, LoadProgress progress = {}) {
  const ExpertPlacement placement =
      ExpertPlacement::Create(config.runner.model.n_routed_experts, 1, 0).value();
  auto worker =
      Worker::Launch(config, placement, {.backend = {.num_threads = 1}}, std::move(progress));
  SHOAL_CHECK(worker.ok(), "{}", worker.status().ToString());
  return *std::move(worker);
}

std::unique_ptr<Worker> StartWorker() {
  auto worker = Launch(SmallConfig());
  EXPECT_EQ(worker->WaitUntilReady().value(), 8);
  return worker;
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
  const auto first = worker->Take().value();
  const auto second = worker->Take().value();
  EXPECT_EQ(first.size(), 20u);
  ASSERT_EQ(second.size(), 30u);
  EXPECT_EQ(second[0].token_id, 21 * 13 % 200);
}

TEST(Worker, GivesTheSameRowsInWholeAndInChunks) {
  const auto worker = StartWorker();
  worker->Post(Chunk(0, 50));  // more rows than logits are made for at once
  const auto whole = worker->Take().value();
  ASSERT_EQ(whole.size(), 50u);
  for (int32_t begin = 0; begin < 50; begin += 7) {
    const int32_t end = std::min(begin + 7, 50);
    worker->Post(Chunk(begin, end));
    const auto chunk = worker->Take().value();
    for (int32_t i = begin; i < end; ++i) {
      EXPECT_TRUE(chunk[static_cast<size_t>(i - begin)] == whole[static_cast<size_t>(i)]) << i;
    }
  }
}

TEST(Worker, RunsAnEmptyBatch) {
  const auto worker = StartWorker();
  worker->Post(BatchOf({}));
  EXPECT_TRUE(worker->Take().value().empty());
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
