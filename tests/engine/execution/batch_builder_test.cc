#include "engine/execution/batch_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

using testing::ElementsAre;

class BatchBuilderTest : public testing::Test {
 protected:
  BatchBuilderTest() : backend_(*MakeCpuBackend({.num_threads = 1})) {}

  BatchBuilder MakeBuilder() {
    return *BatchBuilder::Create(
        {.max_tokens = 8, .max_sequences = 3, .max_blocks = 3, .block_size = 4},
        backend_.device.get());
  }

  /// Without padding.
  BatchInputs Build(BatchBuilder& builder, const ScheduledBatch& batch) {
    return builder.Build(batch, BatchShape::Of(batch));
  }

  std::vector<int32_t> Read(const Tensor& tensor) {
    std::vector<int32_t> host(static_cast<size_t>(tensor.num_elements()));
    backend_.device->CopyToHost(tensor, host.data());
    EXPECT_TRUE(backend_.device->Synchronize().ok());
    return host;
  }

  Backend backend_;
};

ScheduledBatch MixedBatch() {
  ScheduledBatch batch;
  batch.sequences = {{.first_position = 3, .num_tokens = 3, .num_blocks = 2, .slot = 2},
                     {.first_position = 9, .num_tokens = 1, .num_blocks = 3, .slot = 0}};
  batch.token_ids = {11, 12, ScheduledBatch::kInFlightToken, 21};
  batch.block_tables = {7, 5, 2, 3, 1};
  batch.rank_tokens = {0, 4};
  return batch;
}

TEST_F(BatchBuilderTest, LaysSequencesOutOneAfterTheOther) {
  BatchBuilder builder = MakeBuilder();
  const ScheduledBatch batch = MixedBatch();
  const BatchInputs inputs = Build(builder, batch);
  const ForwardBatch& forward = inputs.forward;
  EXPECT_THAT(Read(forward.token_ids), ElementsAre(11, 12, -1, 21));
  EXPECT_THAT(Read(inputs.history_slots), ElementsAre(2, 2, 2, 0));
  EXPECT_THAT(Read(forward.attention.positions), ElementsAre(3, 4, 5, 9));
  EXPECT_THAT(Read(forward.attention.slot_mapping), ElementsAre(31, 20, 21, 5));
  EXPECT_THAT(Read(forward.attention.cu_seqlens), ElementsAre(0, 3, 4));
  EXPECT_THAT(Read(forward.attention.block_tables), ElementsAre(7, 5, 0, 2, 3, 1));
  EXPECT_EQ(forward.attention.block_tables.shape[0], 2);
  EXPECT_EQ(forward.attention.block_tables.shape[1], 3);
  EXPECT_EQ(forward.attention.max_query_len, 3);
  EXPECT_EQ(forward.attention.max_context_len, 10);
  EXPECT_TRUE(forward.num_tokens.empty());
  EXPECT_THAT(forward.rank_tokens, ElementsAre(0, 4));
}

TEST_F(BatchBuilderTest, PadsTokensAndSequences) {
  BatchBuilder builder = MakeBuilder();
  Build(builder, MixedBatch());  // leaves something where the padding will be
  ScheduledBatch batch;
  batch.sequences = {{.first_position = 5, .num_tokens = 1, .num_blocks = 2, .slot = 1}};
  batch.token_ids = {ScheduledBatch::kInFlightToken};
  batch.block_tables = {9, 8};
  const BatchInputs inputs = builder.Build(batch, {.num_tokens = 3,
                                                   .num_sequences = 3,
                                                   .max_query_len = 1,
                                                   .max_context_len = 12,
                                                   .padded = true});
  const ForwardBatch& forward = inputs.forward;
  EXPECT_THAT(Read(forward.token_ids), ElementsAre(-1, -1, -1));
  EXPECT_THAT(Read(inputs.history_slots), ElementsAre(1, -1, -1));
  EXPECT_THAT(Read(forward.attention.positions), ElementsAre(5, 0, 0));
  EXPECT_THAT(Read(forward.attention.slot_mapping), ElementsAre(33, -1, -1));
  EXPECT_THAT(Read(forward.attention.cu_seqlens), ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(Read(forward.attention.block_tables), ElementsAre(9, 8, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(forward.attention.max_query_len, 1);
  EXPECT_EQ(forward.attention.max_context_len, 12);
  EXPECT_THAT(Read(forward.num_tokens), ElementsAre(1));
}

TEST_F(BatchBuilderTest, PadsNothingAtAll) {
  BatchBuilder builder = MakeBuilder();
  const BatchShape shape = {
      .num_tokens = 2, .num_sequences = 2, .max_context_len = 4, .padded = true};
  const BatchInputs inputs = builder.Build({}, shape);
  EXPECT_THAT(Read(inputs.forward.attention.slot_mapping), ElementsAre(-1, -1));
  EXPECT_THAT(Read(inputs.forward.attention.cu_seqlens), ElementsAre(0, 0, 0));
  EXPECT_THAT(Read(inputs.forward.num_tokens), ElementsAre(0));
}

TEST_F(BatchBuilderTest, PutsStepsOfOneShapeInTheSamePlace) {
  BatchBuilder builder = MakeBuilder();
  const BatchShape shape = {.num_tokens = 3,
                            .num_sequences = 3,
                            .max_query_len = 1,
                            .max_context_len = 9,
                            .padded = true};
  const auto places = [&](const ScheduledBatch& batch) {
    const BatchInputs inputs = builder.Build(batch, shape);
    const AttentionMeta& attention = inputs.forward.attention;
    return std::vector{inputs.forward.token_ids.data, inputs.forward.num_tokens.data,
                       inputs.history_slots.data,     attention.positions.data,
                       attention.slot_mapping.data,   attention.cu_seqlens.data,
                       attention.block_tables.data};
  };
  ScheduledBatch batch;
  batch.sequences = {{.first_position = 8, .num_tokens = 1, .num_blocks = 3}};
  batch.token_ids = {5};
  batch.block_tables = {1, 2, 3};
  const auto first = places(batch);
  Build(builder, MixedBatch());
  EXPECT_EQ(places({}), first);
}

TEST_F(BatchBuilderTest, ForgetsTheBatchBefore) {
  BatchBuilder builder = MakeBuilder();
  Build(builder, MixedBatch());
  ScheduledBatch batch;
  batch.sequences = {{.num_tokens = 1, .num_blocks = 1, .slot = 1}};
  batch.token_ids = {5};
  batch.block_tables = {4};
  const BatchInputs inputs = Build(builder, batch);
  EXPECT_THAT(Read(inputs.forward.token_ids), ElementsAre(5));
  EXPECT_THAT(Read(inputs.forward.attention.block_tables), ElementsAre(4))
      << "no wider than needed";
  EXPECT_THAT(Read(inputs.history_slots), ElementsAre(1));
}

TEST_F(BatchBuilderTest, LaysNothingOut) {
  BatchBuilder builder = MakeBuilder();
  Build(builder, MixedBatch());
  const ScheduledBatch batch;
  const ForwardBatch forward = Build(builder, batch).forward;
  EXPECT_EQ(forward.token_ids.shape[0], 0);
  EXPECT_EQ(forward.attention.block_tables.shape[0], 0);
  EXPECT_THAT(Read(forward.attention.cu_seqlens), ElementsAre(0));
}

TEST_F(BatchBuilderTest, AllocatesNothingAfterTheStart) {
  BatchBuilder builder = MakeBuilder();
  const int64_t free_bytes = backend_.device->FreeBytes();
  const ForwardBatch first = Build(builder, MixedBatch()).forward;
  const ForwardBatch second = Build(builder, MixedBatch()).forward;
  EXPECT_EQ(backend_.device->FreeBytes(), free_bytes);
  EXPECT_EQ(first.token_ids.data, second.token_ids.data);
}

}  // namespace
}  // namespace shoal
