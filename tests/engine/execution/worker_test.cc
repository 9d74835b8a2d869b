#include "engine/execution/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "engine/model/checkpoint.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

WorkerConfig SmallConfig() {
  return {.model_directory = SmallCheckpoint(),
          .num_threads = 1,
          .runner = {.model = SmallModel(),
                     .dtype = DType::kBFloat16,
                     .max_num_batched_tokens = 64,
                     .kv_cache = {.block_size = 16, .max_model_len = 64, .max_num_seqs = 2}}};
}

std::unique_ptr<Worker> StartWorker() {
  auto worker = Worker::Start(SmallConfig(), [](int64_t, int64_t) {});
  SHOAL_CHECK(worker.ok(), "{}", worker.status().ToString());
  return *std::move(worker);
}

/// Tokens [begin, end) of a fixed text, with the logprob of the token after each of them.
ScheduledSequence Chunk(int32_t begin, int32_t end) {
  ScheduledSequence sequence;
  sequence.first_position = begin;
  for (int32_t i = begin; i < end; ++i) {
    sequence.token_ids.push_back(i * 13 % 200);
    sequence.logits_rows.push_back(i - begin);
    sequence.sampling.push_back(
        {.forced_token = (i + 1) * 13 % 200, .top_logprobs = 2, .position = i + 1});
  }
  for (int32_t block = 0; block * 16 < end; ++block) sequence.block_table.push_back(7 - block);
  return sequence;
}

ScheduledBatch BatchOf(ScheduledSequence sequence) {
  ScheduledBatch batch;
  batch.sequences.push_back(std::move(sequence));
  return batch;
}

TEST(Worker, RunsTwoBatchesInFlightInOrder) {
  const auto worker = StartWorker();
  EXPECT_EQ(worker->num_kv_blocks(), 8);
  worker->Post(BatchOf(Chunk(0, 20)));
  worker->Post(BatchOf(Chunk(20, 50)));
  const StepResult first = worker->Take();
  const StepResult second = worker->Take();
  ASSERT_TRUE(first.status.ok() && second.status.ok());
  EXPECT_EQ(first.rows.size(), 20u);
  EXPECT_EQ(second.rows.size(), 30u);
  EXPECT_EQ(second.rows[0].token_id, 21 * 13 % 200);
}

TEST(Worker, GivesTheSameRowsInWholeAndInChunks) {
  const auto worker = StartWorker();
  worker->Post(BatchOf(Chunk(0, 50)));  // more rows than logits are made for at once
  const StepResult whole = worker->Take();
  ASSERT_EQ(whole.rows.size(), 50u);
  for (int32_t begin = 0; begin < 50; begin += 7) {
    const int32_t end = std::min(begin + 7, 50);
    worker->Post(BatchOf(Chunk(begin, end)));
    const StepResult chunk = worker->Take();
    for (int32_t i = begin; i < end; ++i) {
      const SampledRow& row = chunk.rows[static_cast<size_t>(i - begin)];
      const SampledRow& expected = whole.rows[static_cast<size_t>(i)];
      EXPECT_EQ(row.token_id, expected.token_id);
      EXPECT_EQ(row.logprob, expected.logprob) << "token " << i;
      EXPECT_EQ(row.top_logprobs[1], expected.top_logprobs[1]);
    }
  }
}

TEST(Worker, RunsAnEmptyBatch) {
  const auto worker = StartWorker();
  worker->Post({});
  const StepResult result = worker->Take();
  EXPECT_TRUE(result.status.ok());
  EXPECT_TRUE(result.rows.empty());
}

TEST(Worker, EndsWithBatchesInFlight) {
  const auto worker = StartWorker();
  worker->Post(BatchOf(Chunk(0, 64)));
  worker->Post(BatchOf(Chunk(0, 64)));
}

TEST(Worker, SaysWhyItCannotStart) {
  WorkerConfig config = SmallConfig();
  config.model_directory = "/nowhere";
  const auto missing = Worker::Start(config, [](int64_t, int64_t) {});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), testing::HasSubstr("/nowhere"));

  config = SmallConfig();
  config.runner.kv_cache.memory_bytes = 100;
  EXPECT_EQ(Worker::Start(config, [](int64_t, int64_t) {}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ModelRunner, HasItsWorkingMemoryBeforeItsKvCache) {
  constexpr int32_t kTokens = 4096;
  ModelRunnerConfig config = SmallConfig().runner;
  config.max_num_batched_tokens = kTokens;
  config.kv_cache.max_model_len = kTokens;
  Backend backend =
      MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = int64_t{1} << 30}).value();
  const auto checkpoint = Checkpoint::Open(SmallCheckpoint()).value();
  auto weights =
      LoadModelWeights(config.model, *checkpoint, config.dtype, backend, [](int64_t, int64_t) {});
  ASSERT_TRUE(weights.ok());
  const auto runner = ModelRunner::Create(config, *std::move(weights), &backend).value();
  const int64_t free_bytes = backend.device->FreeBytes();
  ScheduledSequence sequence = {.token_ids = std::vector<int32_t>(kTokens, 5),
                                .block_table = std::vector<int32_t>(kTokens / 16),
                                .logits_rows = {kTokens - 1},
                                .sampling = {{.temperature = 1}}};
  std::iota(sequence.block_table.begin(), sequence.block_table.end(), 0);
  EXPECT_TRUE(runner->Run(BatchOf(std::move(sequence))).status.ok());
  EXPECT_LE(free_bytes - backend.device->FreeBytes(), 256 << 10)
      << "only attention's, which does not grow with the batch";
}

TEST(Worker, ReportsProgressUpToTheEnd) {
  std::vector<std::pair<int64_t, int64_t>> reports;
  const auto worker = Worker::Start(SmallConfig(), [&reports](int64_t done, int64_t total) {
    reports.emplace_back(done, total);
  });
  ASSERT_TRUE(worker.ok());
  ASSERT_FALSE(reports.empty());
  EXPECT_TRUE(std::ranges::is_sorted(reports));
  EXPECT_EQ(reports.back().first, reports.back().second);
}

}  // namespace
}  // namespace shoal
