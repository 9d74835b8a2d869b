#include "engine/execution/model_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <thread>

#include "engine/model/checkpoint.h"
#include "kernels/comm/local_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/execution/steps.h"
#include "tests/engine/model/temp_directory.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

ModelRunnerConfig SmallConfig() {
  return {.model = SmallModel(),
          .dtype = DType::kBFloat16,
          .max_num_batched_tokens = 128,
          .kv_cache = {.block_size = 16, .max_model_len = 64, .max_num_seqs = 4}};
}

/// A runner and what it computes with.
class Rank {
 public:
  explicit Rank(const ModelRunnerConfig& config,
                std::unique_ptr<Communicator> communicator = nullptr,
                const std::string& directory = SmallCheckpoint())
      : backend_(MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = int64_t{1} << 30},
                                std::move(communicator))
                     .value()) {
    const auto checkpoint = Checkpoint::Open(directory).value();
    const auto placement =
        ExpertPlacement::Create(config.model.n_routed_experts, backend_.communicator->size(), 0);
    auto weights =
        LoadModelWeights(config.model, *checkpoint, config.dtype, *placement, backend_, {});
    runner_ = ModelRunner::Create(config, *std::move(weights), &backend_).value();
  }

  std::vector<SampledRow> Run(const ScheduledBatch& batch) { return runner_->Run(batch).value(); }
  int64_t FreeBytes() const { return backend_.device->FreeBytes(); }

 private:
  Backend backend_;
  std::unique_ptr<ModelRunner> runner_;
};

std::vector<int32_t> Text(int32_t num_tokens) {
  std::vector<int32_t> tokens(static_cast<size_t>(num_tokens));
  for (int32_t i = 0; i < num_tokens; ++i) tokens[static_cast<size_t>(i)] = i * 13 % 200;
  return tokens;
}

/// The whole text from its beginning on, and a token chosen after it.
Part Prompt(std::vector<int32_t> token_ids, SamplingRow row) {
  Part part = {.logits_rows = {static_cast<int32_t>(token_ids.size()) - 1}};
  row.position = std::ssize(token_ids);
  part.sampling = {row};
  for (size_t block = 0; block * 16 < token_ids.size(); ++block) {
    part.blocks.push_back(static_cast<int32_t>(block));
  }
  part.token_ids = std::move(token_ids);
  return part;
}

TEST(ModelRunner, TakesTheTokensThatTheStepBeforeChose) {
  Rank rank(SmallConfig());
  Part chosen = Prompt(Text(20), {.top_logprobs = 5, .slot = 3, .recorded = 1});
  chosen.slot = 3;
  const int32_t token = rank.Run(BatchOf({chosen}))[0].token_id;
  Part next = {.slot = 3,
               .first_position = 20,
               .token_ids = {ScheduledBatch::kInFlightToken},
               .blocks = {0, 1},
               .logits_rows = {0},
               .sampling = {{.top_logprobs = 5, .slot = 3, .position = 21}}};
  const SampledRow in_flight = rank.Run(BatchOf({next}))[0];
  next.token_ids = {token};
  EXPECT_TRUE(rank.Run(BatchOf({next}))[0] == in_flight);
  next.token_ids = {(token + 1) % 200};
  EXPECT_FALSE(rank.Run(BatchOf({next}))[0] == in_flight) << "the token makes a difference";
}

TEST(ModelRunner, PenalisesTokensThatItHasComputedOrIsTold) {
  Rank rank(SmallConfig());
  ScheduledBatch batch = BatchOf({Prompt(Text(20), {})});
  const int32_t likeliest = rank.Run(batch)[0].token_id;
  batch.sampling[0].frequency_penalty = 1000;  // of what was generated: here, all tokens
  EXPECT_EQ(rank.Run(batch)[0].token_id, likeliest) << "the text does not hold it";

  // The last token alone, the others being in the cache already.
  ScheduledBatch last = BatchOf({{.first_position = 19,
                                  .token_ids = {Text(20)[19]},
                                  .blocks = {0, 1},
                                  .logits_rows = {0},
                                  .sampling = batch.sampling}});
  EXPECT_EQ(rank.Run(last)[0].token_id, likeliest);
  last.history = {{.slot = 0, .token_ids = std::vector<int32_t>(19, likeliest)}};
  const int32_t another = rank.Run(last)[0].token_id;
  EXPECT_NE(another, likeliest);
  last.history = {{.slot = 1, .token_ids = std::vector<int32_t>(19, another)},
                  {.slot = 0, .token_ids = std::vector<int32_t>(19, 5)}};
  EXPECT_EQ(rank.Run(last)[0].token_id, likeliest) << "the slot is another sequence's now";
}

TEST(ModelRunner, TakesMoreHistoryThanTokensOfAStep) {
  ModelRunnerConfig config = SmallConfig();
  config.max_num_batched_tokens = 20;
  Rank rank(config);
  ScheduledBatch batch = BatchOf({Prompt(Text(20), {.frequency_penalty = 1000, .slot = 3})});
  const int32_t likeliest = rank.Run(batch)[0].token_id;
  batch.sampling[0].position = 63;
  for (int32_t slot = 0; slot < 4; ++slot) {
    batch.history.push_back({.slot = slot, .token_ids = std::vector<int32_t>(63, likeliest)});
  }
  EXPECT_NE(rank.Run(batch)[0].token_id, likeliest);
}

TEST(ModelRunner, CopiesBlocksBeforeItWritesThem) {
  Rank rank(SmallConfig());
  const auto whole = [&](int32_t last) {
    std::vector<int32_t> text = Text(20);
    text.push_back(last);
    return rank.Run(BatchOf({Prompt(text, {.top_logprobs = 5})}))[0];
  };
  const SampledRow first = whole(7);
  const SampledRow second = whole(8);
  ASSERT_FALSE(first == second);

  rank.Run(BatchOf({Prompt(Text(20), {})}));
  const SamplingRow row = {.top_logprobs = 5, .position = 21};
  const auto choice = [&](int32_t slot, int32_t last, std::vector<int32_t> blocks) {
    return Part{.slot = slot,
                .first_position = 20,
                .token_ids = {last},
                .blocks = std::move(blocks),
                .logits_rows = {0},
                .sampling = {row}};
  };
  ScheduledBatch batch = BatchOf({choice(0, 7, {0, 1}), choice(1, 8, {0, 9})});
  batch.block_copies = {{.source = 1, .target = 9}};
  const auto rows = rank.Run(batch);
  EXPECT_TRUE(rows[0] == first);
  EXPECT_TRUE(rows[1] == second);
}

/// 100 choices after one prompt, more than are made at once: biases force choice i to token i if
/// it is odd, a mask does if it is even.
ScheduledBatch Choices() {
  constexpr int32_t kChoices = 100;
  constexpr int32_t kMaskWords = (200 + 31) / 32;
  ScheduledBatch batch = BatchOf({Prompt(Text(20), {})});
  batch.logits_rows.assign(kChoices, 19);
  batch.sampling.assign(kChoices, {.temperature = 1, .position = 20});
  batch.masks.resize(kChoices / 2 * kMaskWords);
  for (int32_t i = 0; i < kChoices; ++i) {
    SamplingRow& row = batch.sampling[static_cast<size_t>(i)];
    row.seed = static_cast<uint64_t>(i);
    if (i % 2 == 0) {
      row.mask = (kChoices - 1 - i) / 2;  // the last one first
      batch.masks[static_cast<size_t>(row.mask * kMaskWords + i / 32)] = int32_t{1} << i % 32;
    } else {
      row.first_bias = static_cast<int32_t>(batch.biases.size());
      row.num_biases = 1 + i;
      batch.biases.push_back({.token_id = i, .bias = 1000});
      for (int32_t t = 0; t < i; ++t) batch.biases.push_back({.token_id = t, .bias = kNever});
    }
  }
  return batch;
}

TEST(ModelRunner, GivesEachRowItsBiasesAndItsMask) {
  Rank rank(SmallConfig());
  const auto rows = rank.Run(Choices());
  ASSERT_EQ(rows.size(), 100u);
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].token_id, static_cast<int32_t>(i));
}

TEST(ModelRunner, HasRoomForTheMostBiasesInEveryRow) {
  constexpr auto kMaxRowBiases = static_cast<int32_t>(Sampler::kMaxRowBiases);
  Rank rank(SmallConfig());
  ScheduledBatch batch = BatchOf({Prompt(Text(20), {})});
  batch.logits_rows.assign(40, 19);
  for (int32_t i = 0; i < 40; ++i) {
    batch.sampling.push_back(
        {.first_bias = i * kMaxRowBiases, .num_biases = kMaxRowBiases, .position = 20});
    batch.biases.insert(batch.biases.end(), kMaxRowBiases, {.token_id = 150, .bias = 0});
    batch.biases.back() = {.token_id = i, .bias = 1000};
  }
  batch.sampling.erase(batch.sampling.begin());
  const auto rows = rank.Run(batch);
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].token_id, static_cast<int32_t>(i));
}

TEST(ModelRunner, RunsNothingIfNoRankHasTokens) {
  Rank alone(SmallConfig(), std::move(MakeLocalGroup(2)[0]));
  ScheduledBatch batch;
  batch.rank_tokens = {0, 0};
  EXPECT_TRUE(alone.Run(batch).empty()) << "and waits for nobody";
}

TEST(ModelRunner, AllocatesNothingAfterTheStart) {
  Rank rank(SmallConfig());
  rank.Run(BatchOf({Prompt(Text(64), {})}));  // attention takes its working memory
  const int64_t free_bytes = rank.FreeBytes();
  ScheduledBatch batch = Choices();
  batch.block_copies = {{.source = 4, .target = 5}, {.source = 6, .target = 7}};
  batch.history = {{.slot = 2, .token_ids = Text(64)}};
  for (SamplingRow& row : batch.sampling) {
    row.top_k = 50;
    row.top_p = 0.9f;
    row.min_p = 0.01f;
    row.typical_p = 0.9f;
    row.presence_penalty = 1;
    row.repetition_penalty = 1.5f;
    row.top_logprobs = kMaxTopLogprobs;
  }
  rank.Run(batch);
  EXPECT_EQ(rank.FreeBytes(), free_bytes);
}

TEST(ModelRunner, HasItsWorkingMemoryBeforeItsKvCache) {
  constexpr int32_t kTokens = 4096;
  static constexpr int64_t kOfAttention = 256 << 10;  // it does not grow with the batch
  ModelRunnerConfig config = SmallConfig();
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
      ranks.push_back(std::make_unique<Rank>(config, std::move(communicator), directory.path()));
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

}  // namespace
}  // namespace shoal
