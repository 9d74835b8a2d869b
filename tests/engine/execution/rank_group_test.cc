#include "engine/execution/rank_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>

#include "tests/engine/execution/cpu_ranks.h"
#include "tests/engine/execution/steps.h"
#include "tests/engine/model/temp_directory.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

using testing::HasSubstr;

constexpr int32_t kBlocksPerSequence = 4;
constexpr int32_t kNumSequences = 6;

WorkerConfig GroupConfig(int num_ranks, int num_redundant_experts = 0) {
  return {.model_directory = SmallCheckpoint(),
          .num_ranks = num_ranks,
          .num_redundant_experts = num_redundant_experts,
          .make_backend = CpuRanks(),
          .runner = {.model = SmallModel(),
                     .dtype = DType::kBFloat16,
                     .max_num_batched_tokens = 64,
                     .kv_cache = {.block_size = 16,
                                  .max_model_len = kBlocksPerSequence * 16,
                                  .max_num_seqs = kNumSequences,
                                  .memory_bytes = int64_t{2} << 20}}};
}

std::unique_ptr<RankGroup> Start(const WorkerConfig& config) {
  auto group = RankGroup::Start(config, {});
  SHOAL_CHECK(group.ok(), "{}", group.status().ToString());
  return *std::move(group);
}

/// One of the sequences that are generated side by side: a prompt of its own, read in chunks, then
/// tokens.
struct Generated {
  int32_t id = 0;
  int64_t num_tokens = 0;  // so far, computed or in flight
  std::vector<SampledRow> rows = {};

  int32_t num_prompt_tokens() const { return 5 + 3 * id; }

  Part NextChunk() {
    constexpr int64_t kChunk = 7;
    Part part = {.slot = id, .first_position = num_tokens};
    for (int32_t i = 0; i < kBlocksPerSequence; ++i) {
      part.blocks.push_back(id * kBlocksPerSequence + i);
    }
    const int64_t num_left = num_prompt_tokens() - num_tokens;
    if (num_left <= 0) part.token_ids = {ScheduledBatch::kInFlightToken};
    for (int64_t i = 0; i < std::min(num_left, kChunk); ++i) {
      part.token_ids.push_back(static_cast<int32_t>((num_tokens + i) * 31 + id * 17) % 200);
    }
    num_tokens += std::ssize(part.token_ids);
    if (num_left <= kChunk) {
      part.logits_rows = {static_cast<int32_t>(part.token_ids.size()) - 1};
      part.sampling = {{.temperature = 0.8f,
                        .frequency_penalty = 0.5f,
                        .top_logprobs = kMaxTopLogprobs,
                        .slot = id,
                        .num_prompt_tokens = num_prompt_tokens(),
                        .recorded = 1,
                        .seed = static_cast<uint64_t>(id),
                        .position = num_tokens}};
    }
    return part;
  }
};

/// The rows of all sequences, sequence i running on rank homes[i], with `num_in_flight` steps in
/// flight. Steps end when the longest has got some tokens.
std::vector<std::vector<SampledRow>> Generate(RankGroup& group, const std::vector<int>& homes,
                                              int num_in_flight) {
  constexpr int kNumSteps = 8;
  std::vector<Generated> sequences(kNumSequences);
  for (int32_t id = 0; id < kNumSequences; ++id) sequences[static_cast<size_t>(id)].id = id;
  std::vector<std::vector<std::vector<Generated*>>> owners;  // of each step's rows, by rank
  auto take = [&, next = size_t{0}]() mutable {
    const StepResult result = group.Take();
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (size_t rank = 0; rank < result.rows.size(); ++rank) {
      ASSERT_EQ(result.rows[rank].size(), owners[next][rank].size());
      for (size_t i = 0; i < result.rows[rank].size(); ++i) {
        owners[next][rank][i]->rows.push_back(result.rows[rank][i]);
      }
    }
    ++next;
  };
  for (int step = 0; step < kNumSteps; ++step) {
    const size_t num_ranks = group.num_kv_blocks().size();
    std::vector<std::vector<Part>> parts(num_ranks);
    owners.emplace_back(num_ranks);
    for (Generated& sequence : sequences) {
      const auto home = static_cast<size_t>(homes[static_cast<size_t>(sequence.id)]);
      parts[home].push_back(sequence.NextChunk());
      if (!parts[home].back().sampling.empty()) owners.back()[home].push_back(&sequence);
    }
    std::vector<ScheduledBatch> batches;
    for (const auto& rank : parts) batches.push_back(BatchOf(rank));
    group.Post(StepOf(std::move(batches)));
    if (step + 1 >= num_in_flight) take();
  }
  for (int left = 1; left < num_in_flight; ++left) take();
  std::vector<std::vector<SampledRow>> rows;
  for (Generated& sequence : sequences) rows.push_back(std::move(sequence.rows));
  return rows;
}

void ExpectTheSame(const std::vector<std::vector<SampledRow>>& rows,
                   const std::vector<std::vector<SampledRow>>& expected) {
  ASSERT_EQ(rows.size(), expected.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ(rows[i].size(), expected[i].size());
    ASSERT_GE(rows[i].size(), 3u);
    for (size_t k = 0; k < rows[i].size(); ++k) {
      EXPECT_TRUE(rows[i][k] == expected[i][k]) << "token " << k << " of sequence " << i;
    }
  }
}

/// Sequences on the ranks in turns; all on the first; all on the last but one.
std::vector<std::vector<int>> HomesOn(int num_ranks) {
  std::vector<int> in_turns;
  for (int i = 0; i < kNumSequences; ++i) in_turns.push_back(i % num_ranks);
  std::vector<int> last(kNumSequences, num_ranks - 1);
  last[2] = 0;
  return {in_turns, std::vector<int>(kNumSequences, 0), last};
}

TEST(RankGroup, GivesTheSameRowsOnEveryNumberOfRanks) {
  const auto expected = Generate(*Start(GroupConfig(1)), HomesOn(1)[0], 1);
  for (const int num_ranks : {1, 2, 4, 8}) {
    for (const int num_redundant : {0, 3}) {
      if (num_ranks == 1 && num_redundant > 0) continue;
      const auto group = Start(GroupConfig(num_ranks, num_redundant));
      for (const auto& homes : HomesOn(num_ranks)) {
        SCOPED_TRACE(fmt::format("{} ranks, {} redundant", num_ranks, num_redundant));
        ExpectTheSame(Generate(*group, homes, 2), expected);
      }
    }
  }
}

/// The rows on one rank and on three, with two steps in flight, of a random model of `config`.
void ExpectTheSameOnThreeRanks(const ModelConfig& config) {
  const TempDirectory directory;
  ASSERT_TRUE(WriteRandomCheckpoint(config, 1, int64_t{1} << 30, directory.path(), {}).ok());
  const auto started = [&](int num_ranks) {
    WorkerConfig group = GroupConfig(num_ranks);
    group.model_directory = directory.path();
    group.runner.model = config;
    return Start(group);
  };
  const auto expected = Generate(*started(1), HomesOn(1)[0], 1);
  const auto group = started(3);
  for (const auto& homes : HomesOn(3)) ExpectTheSame(Generate(*group, homes, 2), expected);
}

TEST(RankGroup, RunsADenseModel) {
  ModelConfig config = SmallModel();
  config.n_routed_experts = 0;
  config.n_shared_experts = 0;
  config.num_experts_per_tok = 0;
  ExpectTheSameOnThreeRanks(config);
}

TEST(RankGroup, RunsAModelWithoutSharedExperts) {
  ModelConfig config = SmallModel();
  config.n_shared_experts = 0;
  ExpectTheSameOnThreeRanks(config);
}

TEST(RankGroup, DividesTheKvCache) {
  const int32_t whole = Start(GroupConfig(1))->num_kv_blocks()[0];
  const auto group = Start(GroupConfig(4));
  EXPECT_THAT(group->num_kv_blocks(),
              testing::ElementsAre(whole / 4, whole / 4, whole / 4, whole / 4));
}

TEST(RankGroup, KnowsWhatTheMemoryOfEachRankIsFor) {
  const auto group = Start(GroupConfig(3));
  ASSERT_EQ(group->memory_plans().size(), 3u);
  for (size_t rank = 0; rank < 3; ++rank) {
    const MemoryPlan& plan = group->memory_plans()[rank];
    EXPECT_EQ(plan.num_kv_blocks, group->num_kv_blocks()[rank]);
    EXPECT_GT(plan.weight_bytes, 0);
  }
}

TEST(RankGroup, EndsWithStepsInFlight) {
  const auto group = Start(GroupConfig(3));
  for (int i = 0; i < Executor::kMaxInFlight; ++i) {
    Generated sequence = {.id = 5};
    group->Post(StepOf({{}, BatchOf({sequence.NextChunk()}), {}}));
  }
}

TEST(RankGroup, EndsTheOtherRanksIfOneCannotStart) {
  bool thrown = false;
  const absl::Status status = RankGroup::Start(GroupConfig(3), [&](int64_t, int64_t) {
                                if (!std::exchange(thrown, true)) throw std::bad_alloc();
                              }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::StartsWith("rank "));
}

TEST(RankGroup, NamesTheRankThatCannotStartIfThereAreSeveral) {
  WorkerConfig config = GroupConfig(2);
  config.runner.kv_cache.memory_bytes = 100;
  EXPECT_THAT(std::string(RankGroup::Start(config, {}).status().message()),
              testing::StartsWith("rank 0: the KV cache"));
  config.num_ranks = 1;
  EXPECT_THAT(std::string(RankGroup::Start(config, {}).status().message()),
              testing::StartsWith("the KV cache"));
}

TEST(RankGroup, RefusesMoreRanksThanExperts) {
  const absl::Status status = RankGroup::Start(GroupConfig(9), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_ranks is 9"));
}

TEST(RankGroup, ReportsTheProgressOfAllRanksTogether) {
  std::vector<std::pair<int64_t, int64_t>> reports;
  const auto group = RankGroup::Start(GroupConfig(3), [&reports](int64_t done, int64_t total) {
    reports.emplace_back(done, total);
  });
  ASSERT_TRUE(group.ok());
  EXPECT_TRUE(std::ranges::is_sorted(reports));
  EXPECT_EQ(reports.back().first, reports.back().second);
  EXPECT_EQ(reports.front().second, reports.back().second);
  EXPECT_GT(reports.back().second, 2 * SmallModel().num_parameters()) << "shared parts thrice";
}

}  // namespace
}  // namespace shoal
