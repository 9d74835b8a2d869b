#include "engine/execution/model_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "kernels/comm/local_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/execution/model_runner_suite.h"
#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

using testing::HasSubstr;

Backend CpuRank(std::unique_ptr<Communicator> communicator = nullptr,
                int64_t memory_limit_bytes = int64_t{1} << 30) {
  return MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = memory_limit_bytes},
                        std::move(communicator))
      .value();
}

INSTANTIATE_TEST_SUITE_P(Cpu, ModelRunnerSuite,
                         testing::Values(RunnerCase{"cpu", [] { return CpuRank(); }}));

TEST(ModelRunner, RunsNothingIfNoRankHasTokens) {
  Rank alone(SmallRunnerConfig(), CpuRank(std::move(MakeLocalGroup(2)[0])));
  ScheduledBatch batch;
  batch.rank_tokens = {0, 0};
  EXPECT_TRUE(alone.Run(batch).empty()) << "and waits for nobody";
}

TEST(ModelRunner, HasItsWorkingMemoryBeforeItsKvCache) {
  constexpr int32_t kTokens = 4096;
  static constexpr int64_t kOfAttention = 256 << 10;  // it does not grow with the batch
  ModelRunnerConfig config = SmallRunnerConfig();
  config.max_num_batched_tokens = kTokens;
  config.kv_cache.max_model_len = kTokens;
  // Nothing but the routed experts needs as much as they do.
  config.model.first_k_dense_replace = 0;
  config.model.n_shared_experts = 0;
  const TempDirectory directory;
  ASSERT_TRUE(WriteRandomCheckpoint(config.model, 1, int64_t{1} << 30, directory.path(), {}).ok());
  for (const int num_ranks : {1, 2}) {
    auto communicators = MakeLocalGroup(num_ranks);
    std::vector<std::unique_ptr<Rank>> ranks;  // each starts without the others
    std::vector<std::thread> threads;
    for (auto& communicator : communicators) {
      ranks.push_back(
          std::make_unique<Rank>(config, CpuRank(std::move(communicator)), directory.path()));
    }
    ScheduledBatch batch = BatchOf({Prompt(Text(kTokens), {.temperature = 1})});
    batch.rank_tokens.resize(static_cast<size_t>(num_ranks));
    for (const auto& rank : ranks) {
      ScheduledBatch part;
      part.rank_tokens = batch.rank_tokens;
      if (rank == ranks.front()) part = batch;
      threads.emplace_back([&rank, part = std::move(part)] {
        const int64_t free_bytes = rank->FreeBytes();
        rank->Run(part);
        EXPECT_LE(free_bytes - rank->FreeBytes(), kOfAttention);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(ModelRunner, LeavesNothingOfAnExclusiveDevice) {
  constexpr int64_t kRounding = 5 * 4096;  // of the layers' tensors
  ModelRunnerConfig config = SmallRunnerConfig();
  config.kv_cache.exclusive_device = true;
  Rank rank(config, CpuRank(nullptr, int64_t{16} << 20));
  const int64_t block_bytes = 16 * KvBytesPerToken(config.model, config.dtype);
  EXPECT_GT(rank.runner().num_kv_blocks(), 4 * 4) << "more than its sequences need";
  EXPECT_LE(rank.FreeBytes(), block_bytes + kRounding);
  config.kv_cache.exclusive_device = false;
  EXPECT_EQ(Rank(config, CpuRank(nullptr, int64_t{16} << 20)).runner().num_kv_blocks(), 4 * 4);
}

absl::Status Planned(const ModelRunnerConfig& config, int64_t free_bytes, int num_ranks = 1) {
  const auto placement = ExpertPlacement::Create(config.model, num_ranks, 0).value();
  return ModelRunner::PlanMemory(config, placement, 0, free_bytes).status();
}

TEST(ModelRunner, SaysBeforeTheLoadWhatMemoryItNeeds) {
  ModelRunnerConfig config = SmallRunnerConfig();
  config.model = *PresetModelConfig("16b");
  config.kv_cache = {.block_size = 16, .max_model_len = 4096, .max_num_seqs = 64};
  const int64_t weight_bytes = 2 * config.model.num_parameters();
  EXPECT_TRUE(Planned(config, weight_bytes * 5 / 4).ok());
  const absl::Status weights = Planned(config, weight_bytes);
  EXPECT_EQ(weights.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(weights.message()),
      testing::AllOf(HasSubstr(fmt::format("{} bytes are needed for weights", weight_bytes)),
                     HasSubstr(fmt::format("has {} free", weight_bytes))));
  EXPECT_TRUE(Planned(config, weight_bytes * 3 / 4, /*num_ranks=*/4).ok())
      << "a part of the experts";

  const int64_t sequence_bytes = 4096 * KvBytesPerToken(config.model, config.dtype);
  const int64_t little = weight_bytes + sequence_bytes;  // half of what is left may be used
  EXPECT_THAT(std::string(Planned(config, little).message()),
              HasSubstr(fmt::format("needs {} bytes", sequence_bytes)));
  config.kv_cache.memory_bytes = 2 * sequence_bytes;
  EXPECT_THAT(std::string(Planned(config, little).message()),
              HasSubstr("lower kv_cache_memory_bytes"));
}

TEST(ModelRunner, SaysInOneLineWhatItsMemoryIsFor) {
  EXPECT_EQ(
      Describe({.weight_bytes = int64_t{32} << 30,
                .activation_bytes = int64_t{1} << 28,
                .kv_cache_bytes = int64_t{3} << 29,
                .num_kv_blocks = 700,
                .left_bytes = int64_t{1} << 30}),
      "weights 32.00 GiB, activations 0.25 GiB, KV cache 1.50 GiB (700 blocks), 1.00 GiB left");
}

}  // namespace
}  // namespace shoal
