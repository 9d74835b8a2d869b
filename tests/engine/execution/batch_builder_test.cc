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
  const BatchInputs inputs = builder.Build(batch);
  const ForwardBatch& forward = inputs.forward;
  EXPECT_THAT(Read(forward.token_ids), ElementsAre(11, 12, -1, 21));
  EXPECT_THAT(Read(inputs.history_slots), ElementsAre(2, 2, 2, 0));
  EXPECT_THAT(Read(forward.attention.positions), ElementsAre(3, 4, 5, 9));
  EXPECT_THAT(Read(forward.attention.slot_mapping), ElementsAre(31, 20, 21, 5));
  EXPECT_THAT(Read(forward.attention.cu_seqlens), ElementsAre(0, 3, 4));
  EXPECT_THAT(Read(forward.attention.block_tables), ElementsAre(7, 5, 0, 2, 3, 1));
  EXPECT_EQ(forward.attention.block_tables.shape[0], 2);
  EXPECT_EQ(forward.attention.block_tables.shape[1], 3);
  EXPECT_THAT(forward.rank_tokens, ElementsAre(0, 4));
}

TEST_F(BatchBuilderTest, ForgetsTheBatchBefore) {
  BatchBuilder builder = MakeBuilder();
  builder.Build(MixedBatch());
  ScheduledBatch batch;
  batch.sequences = {{.num_tokens = 1, .num_blocks = 1, .slot = 1}};
  batch.token_ids = {5};
  batch.block_tables = {4};
  const BatchInputs inputs = builder.Build(batch);
  EXPECT_THAT(Read(inputs.forward.token_ids), ElementsAre(5));
  EXPECT_THAT(Read(inputs.forward.attention.block_tables), ElementsAre(4, 0, 0));
  EXPECT_THAT(Read(inputs.history_slots), ElementsAre(1));
}

TEST_F(BatchBuilderTest, LaysNothingOut) {
  BatchBuilder builder = MakeBuilder();
  builder.Build(MixedBatch());
  const ScheduledBatch batch;
  const ForwardBatch forward = builder.Build(batch).forward;
  EXPECT_EQ(forward.token_ids.shape[0], 0);
  EXPECT_EQ(forward.attention.block_tables.shape[0], 0);
  EXPECT_THAT(Read(forward.attention.cu_seqlens), ElementsAre(0));
}

TEST_F(BatchBuilderTest, AllocatesNothingAfterTheStart) {
  BatchBuilder builder = MakeBuilder();
  const int64_t free_bytes = backend_.device->FreeBytes();
  const ForwardBatch first = builder.Build(MixedBatch()).forward;
  const ForwardBatch second = builder.Build(MixedBatch()).forward;
  EXPECT_EQ(backend_.device->FreeBytes(), free_bytes);
  EXPECT_EQ(first.token_ids.data, second.token_ids.data);
}

}  // namespace
}  // namespace shoal
