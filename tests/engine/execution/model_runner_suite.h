// What every backend must do in the hands of a ModelRunner. A test file instantiates
// ModelRunnerSuite with its backends.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine/execution/model_runner.h"
#include "engine/model/checkpoint.h"
#include "tests/engine/execution/steps.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {

inline constexpr float kNever = -std::numeric_limits<float>::infinity();

inline ModelRunnerConfig SmallRunnerConfig() {
  return {.model = SmallModel(),
          .dtype = DType::kBFloat16,
          .max_num_batched_tokens = 128,
          .kv_cache = {.block_size = 16, .max_model_len = 64, .max_num_seqs = 4}};
}

/// The weights of a checkpoint, on one of the backend's ranks.
inline ModelWeights LoadedWeights(const ModelRunnerConfig& config, Backend& backend,
                                  const std::string& directory = SmallCheckpoint()) {
  const auto checkpoint = Checkpoint::Open(directory).value();
  const auto placement = ExpertPlacement::Create(config.model, backend.communicator->size(), 0);
  return LoadModelWeights(config.model, *checkpoint, config.dtype, *placement, backend, {}).value();
}

/// A runner and what it computes with.
class Rank {
 public:
  Rank(const ModelRunnerConfig& config, Backend backend,
       const std::string& directory = SmallCheckpoint())
      : backend_(std::move(backend)) {
    ModelWeights weights = LoadedWeights(config, backend_, directory);
    runner_ = ModelRunner::Create(config, std::move(weights), &backend_).value();
  }

  std::vector<SampledRow> Run(const ScheduledBatch& batch) {
    return runner_->Collect(runner_->Enqueue(batch)).value();
  }
  ModelRunner& runner() { return *runner_; }
  int64_t FreeBytes() const { return backend_.device->FreeBytes(); }

 private:
  Backend backend_;
  std::unique_ptr<ModelRunner> runner_;
};

inline std::vector<int32_t> Text(int32_t num_tokens) {
  std::vector<int32_t> tokens(static_cast<size_t>(num_tokens));
  for (int32_t i = 0; i < num_tokens; ++i) tokens[static_cast<size_t>(i)] = i * 13 % 200;
  return tokens;
}

/// The whole text from its beginning on, and a token chosen after it.
inline Part Prompt(std::vector<int32_t> token_ids, SamplingRow row) {
  Part part = {.logits_rows = {static_cast<int32_t>(token_ids.size()) - 1}};
  row.position = std::ssize(token_ids);
  part.sampling = {row};
  for (size_t block = 0; block * 16 < token_ids.size(); ++block) {
    part.blocks.push_back(static_cast<int32_t>(block));
  }
  part.token_ids = std::move(token_ids);
  return part;
}

/// 100 choices after one prompt, more than are made at once: biases force choice i to token i if
/// it is odd, a mask does if it is even.
inline ScheduledBatch Choices() {
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

/// Sequences that are generated side by side, each from a prompt of its own.
class Generation {
 public:
  /// Sequence i has the slot i and the blocks from i * blocks_per_sequence on.
  Generation(std::vector<int32_t> prompt_sizes, int32_t blocks_per_sequence)
      : prompt_sizes_(std::move(prompt_sizes)),
        blocks_per_sequence_(blocks_per_sequence),
        num_tokens_(prompt_sizes_.size()) {}

  /// The first `num_sequences`: their prompts, or the token that the step before chose.
  ScheduledBatch NextStep(size_t num_sequences) {
    std::vector<Part> parts;
    for (size_t i = 0; i < num_sequences; ++i) parts.push_back(NextPart(i));
    return BatchOf(parts);
  }

 private:
  Part NextPart(size_t i) {
    const auto id = static_cast<int32_t>(i);
    int64_t& num_tokens = num_tokens_[i];
    Part part = {.slot = id, .first_position = num_tokens};
    for (int32_t block = 0; block < blocks_per_sequence_; ++block) {
      part.blocks.push_back(id * blocks_per_sequence_ + block);
    }
    part.token_ids = {ScheduledBatch::kInFlightToken};
    if (num_tokens == 0) {
      part.token_ids = Text(prompt_sizes_[i]);
      part.token_ids[0] = id;
    }
    num_tokens += std::ssize(part.token_ids);
    part.logits_rows = {static_cast<int32_t>(part.token_ids.size()) - 1};
    part.sampling = {{.temperature = 0.8f,
                      .frequency_penalty = 0.5f,
                      .top_logprobs = kMaxTopLogprobs,
                      .slot = id,
                      .num_prompt_tokens = prompt_sizes_[i],
                      .recorded = 1,
                      .seed = static_cast<uint64_t>(id),
                      .position = num_tokens}};
    return part;
  }

  const std::vector<int32_t> prompt_sizes_;
  const int32_t blocks_per_sequence_;
  std::vector<int64_t> num_tokens_;
};

/// A backend under test. `make` gives UNIMPLEMENTED where the machine cannot run it.
struct RunnerCase {
  std::string name;
  std::function<absl::StatusOr<Backend>()> make;
  int64_t working_memory_bytes = int64_t{1} << 20;  // of its ops with a small model, at most
};

inline void PrintTo(const RunnerCase& backend, std::ostream* out) { *out << backend.name; }

class ModelRunnerSuite : public testing::TestWithParam<RunnerCase> {
 protected:
  void SetUp() override {
    const absl::Status status = GetParam().make().status();
    if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  }

  static Backend MakeBackend() { return GetParam().make().value(); }
  static Rank MakeRank(const ModelRunnerConfig& config) { return Rank(config, MakeBackend()); }
};

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ModelRunnerSuite);

TEST_P(ModelRunnerSuite, TakesTheTokensThatTheStepBeforeChose) {
  Rank rank = MakeRank(SmallRunnerConfig());
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

TEST_P(ModelRunnerSuite, GivesTheSameRowsWithTwoStepsInFlight) {
  constexpr int kNumSteps = 6;
  // Fewer sequences, then more, then fewer again: what the host writes differs from step to step.
  constexpr size_t kSequences[kNumSteps] = {2, 4, 4, 1, 3, 4};
  std::vector<std::vector<SampledRow>> expected;
  Rank alone = MakeRank(SmallRunnerConfig());
  Generation generation({5, 17, 30, 1}, 4);
  for (const size_t count : kSequences) expected.push_back(alone.Run(generation.NextStep(count)));

  Rank rank = MakeRank(SmallRunnerConfig());
  ModelRunner& runner = rank.runner();
  Generation again({5, 17, 30, 1}, 4);
  std::deque<StepInFlight> steps;
  for (size_t step = 0; step < kNumSteps + 1; ++step) {
    if (step < kNumSteps) steps.push_back(runner.Enqueue(again.NextStep(kSequences[step])));
    if (step == 0) continue;
    StepInFlight oldest = std::move(steps.front());
    steps.pop_front();
    EXPECT_TRUE(runner.Collect(std::move(oldest)).value() == expected[step - 1]) << step;
  }
}

/// Steps of one to all sequences, so most of them are padded, and of lengths that pass a bound.
TEST_P(ModelRunnerSuite, GivesTheSameRowsWithAndWithoutGraphs) {
  const auto rows = [](bool enforce_eager) {
    ModelRunnerConfig config = SmallRunnerConfig();
    config.enforce_eager = enforce_eager;
    config.max_num_batched_tokens = 300;
    config.kv_cache.max_model_len = 288;
    config.kv_cache.max_num_seqs = 7;
    Rank rank = MakeRank(config);
    Generation generation({1, 254, 17, 9, 2, 3}, 18);
    std::vector<std::vector<SampledRow>> rows = {rank.Run(generation.NextStep(6))};
    for (const size_t count : {6, 5, 3, 2, 1, 1, 6}) {
      rows.push_back(rank.Run(generation.NextStep(count)));
    }
    return rows;
  };
  EXPECT_TRUE(rows(false) == rows(true));
}

/// The parts of a runner, to run steps of any shape.
class Forward {
 public:
  explicit Forward(Backend backend) : backend_(std::move(backend)) {
    const ModelRunnerConfig config = SmallRunnerConfig();
    const KvCacheConfig& cache = config.kv_cache;
    Device& device = *backend_.device;
    model_ = DeepseekMoe::Create(config.model, LoadedWeights(config, backend_), config.dtype,
                                 {.max_tokens = 32,
                                  .max_positions = cache.max_model_len,
                                  .max_logits_rows = 32,
                                  .vocab_limit = config.model.vocab_size},
                                 &backend_)
                 .value();
    builder_ = BatchBuilder::Create(
        {.max_tokens = 32, .max_sequences = 8, .max_blocks = 4, .block_size = cache.block_size},
        &device);
    kv_cache_ = KvCache::Create(config.model, config.dtype, cache.block_size, 16, device).value();
    history_ = device.Allocate(DType::kInt32, {cache.max_num_seqs, cache.max_model_len}).value();
    row_ids_ = device.Allocate(DType::kInt32, {32}).value();
  }

  /// The logits of all tokens of the batch, bit by bit.
  std::vector<int32_t> Run(const ScheduledBatch& batch, const BatchShape& shape) {
    const BatchInputs inputs = builder_->Build(batch, shape);
    const ForwardBatch& forward = inputs.forward;
    backend_.ops->ResolveTokens(forward.token_ids, inputs.history_slots,
                                forward.attention.positions, history_);
    model_->Forward(forward, kv_cache_.layers());
    std::vector<int32_t> ids(static_cast<size_t>(batch.num_tokens()));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    const Tensor row_ids = row_ids_.Rows(0, batch.num_tokens());
    backend_.device->CopyFromHost(ids.data(), row_ids);
    return Read(model_->Logits(row_ids));
  }

  /// All that steps leave behind: the KV cache and the history.
  std::vector<std::vector<int32_t>> State() {
    std::vector<std::vector<int32_t>> state = {Read(history_)};
    for (const Tensor& layer : kv_cache_.layers()) state.push_back(Read(layer));
    return state;
  }

 private:
  std::vector<int32_t> Read(const Tensor& tensor) {
    std::vector<int32_t> words(static_cast<size_t>(tensor.size_bytes()) / sizeof(int32_t));
    backend_.device->CopyToHost(tensor, words.data());
    EXPECT_TRUE(backend_.device->Synchronize().ok());
    return words;
  }

  Backend backend_;
  std::unique_ptr<DeepseekMoe> model_;
  absl::StatusOr<BatchBuilder> builder_;
  KvCache kv_cache_;
  Tensor history_;
  Tensor row_ids_;
};

TEST_P(ModelRunnerSuite, PaddingChangesNoBit) {
  Forward forward(MakeBackend());
  Generation generation({5, 17, 1}, 4);
  const ScheduledBatch prompts = generation.NextStep(3);
  forward.Run(prompts, BatchShape::Of(prompts));
  ScheduledBatch batch = generation.NextStep(3);
  batch.token_ids = {150, 3, ScheduledBatch::kInFlightToken};
  const BatchShape own = BatchShape::Of(batch);
  const auto logits = forward.Run(batch, own);
  const auto state = forward.State();
  for (const int64_t size : {3, 4, 8}) {
    for (const int64_t context_len : {own.max_context_len, int64_t{32}, int64_t{64}}) {
      const BatchShape padded = {.num_tokens = size,
                                 .num_sequences = size,
                                 .max_query_len = 1,
                                 .max_context_len = context_len,
                                 .padded = true};
      EXPECT_TRUE(forward.Run(batch, padded) == logits) << size << " of " << context_len;
      EXPECT_TRUE(forward.State() == state) << size << " of " << context_len;
      forward.Run({}, padded);
      EXPECT_TRUE(forward.State() == state) << "padding alone";
    }
  }
}

TEST_P(ModelRunnerSuite, PenalisesTokensThatItHasComputedOrIsTold) {
  Rank rank = MakeRank(SmallRunnerConfig());
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

TEST_P(ModelRunnerSuite, TakesMoreHistoryThanTokensOfAStep) {
  ModelRunnerConfig config = SmallRunnerConfig();
  config.max_num_batched_tokens = 20;
  Rank rank = MakeRank(config);
  ScheduledBatch batch = BatchOf({Prompt(Text(20), {.frequency_penalty = 1000, .slot = 3})});
  const int32_t likeliest = rank.Run(batch)[0].token_id;
  batch.sampling[0].position = 63;
  for (int32_t slot = 0; slot < 4; ++slot) {
    batch.history.push_back({.slot = slot, .token_ids = std::vector<int32_t>(63, likeliest)});
  }
  EXPECT_NE(rank.Run(batch)[0].token_id, likeliest);
}

TEST_P(ModelRunnerSuite, CopiesBlocksBeforeItWritesThem) {
  Rank rank = MakeRank(SmallRunnerConfig());
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

TEST_P(ModelRunnerSuite, GivesEachRowItsBiasesAndItsMask) {
  Rank rank = MakeRank(SmallRunnerConfig());
  const auto rows = rank.Run(Choices());
  ASSERT_EQ(rows.size(), 100u);
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].token_id, static_cast<int32_t>(i));
}

TEST_P(ModelRunnerSuite, GivesTheSameRowsAtOnceAndInSlices) {
  ScheduledBatch batch = Choices();
  for (SamplingRow& row : batch.sampling) row.top_logprobs = kMaxTopLogprobs;
  ModelRunnerConfig config = SmallRunnerConfig();
  ASSERT_LT(Sampler::MaxRows(config.kv_cache.max_num_seqs), 100);
  const auto in_slices = MakeRank(config).Run(batch);
  config.kv_cache.max_num_seqs = 100;
  ASSERT_GE(Sampler::MaxRows(config.kv_cache.max_num_seqs), 100);
  EXPECT_TRUE(MakeRank(config).Run(batch) == in_slices);
}

TEST_P(ModelRunnerSuite, HasRoomForTheMostBiasesInEveryRow) {
  constexpr auto kMaxRowBiases = static_cast<int32_t>(Sampler::kMaxRowBiases);
  Rank rank = MakeRank(SmallRunnerConfig());
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

TEST_P(ModelRunnerSuite, AllocatesNothingAfterTheStart) {
  Rank rank = MakeRank(SmallRunnerConfig());
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

/// As Worker does it: the plan is made before the weights are loaded.
TEST_P(ModelRunnerSuite, PlansNoMoreMemoryThanItTakes) {
  ModelRunnerConfig config = SmallRunnerConfig();
  config.kv_cache.memory_bytes = int64_t{1} << 20;
  const auto placement = ExpertPlacement::Create(config.model, 1, 0).value();
  Backend backend = MakeBackend();
  const int64_t free_bytes = backend.device->FreeBytes();
  const MemoryPlan plan = ModelRunner::PlanMemory(config, placement, 0, free_bytes).value();
  ModelWeights weights = LoadedWeights(config, backend);
  const int64_t weight_bytes = free_bytes - backend.device->FreeBytes();
  const auto runner = ModelRunner::Create(config, std::move(weights), &backend).value();
  const MemoryPlan& taken = runner->memory_plan();
  EXPECT_LE(plan.weight_bytes, weight_bytes);
  EXPECT_LE(plan.activation_bytes, taken.activation_bytes);
  EXPECT_LE(plan.kv_cache_bytes, taken.kv_cache_bytes);
  EXPECT_EQ(plan.num_kv_blocks, taken.num_kv_blocks);
  EXPECT_EQ(taken.left_bytes, backend.device->FreeBytes());
  EXPECT_GE(plan.left_bytes, taken.left_bytes);
  EXPECT_LE(plan.left_bytes, taken.left_bytes + GetParam().working_memory_bytes)
      << "no more than the working memory, and rounding, which a config does not tell";
}

}  // namespace shoal
