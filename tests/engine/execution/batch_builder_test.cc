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
  batch.sequences.push_back({.sequence_id = 1,
                             .first_position = 3,
                             .token_ids = {11, 12, 13},
                             .block_table = {7, 5},
                             .logits_rows = {0, 2},
                             .sampling = {{.seed = 1}, {.seed = 2}}});
  batch.sequences.push_back({.sequence_id = 2,
                             .first_position = 9,
                             .token_ids = {21},
                             .block_table = {2, 3, 1},
                             .logits_rows = {0},
                             .sampling = {{.seed = 3}}});
  return batch;
}

TEST_F(BatchBuilderTest, LaysSequencesOutOneAfterTheOther) {
  BatchBuilder builder = MakeBuilder();
  const ForwardBatch forward = builder.Build(MixedBatch());
  EXPECT_THAT(Read(forward.token_ids), ElementsAre(11, 12, 13, 21));
  EXPECT_THAT(Read(forward.attention.positions), ElementsAre(3, 4, 5, 9));
  EXPECT_THAT(Read(forward.attention.slot_mapping), ElementsAre(31, 20, 21, 5));
  EXPECT_THAT(Read(forward.attention.cu_seqlens), ElementsAre(0, 3, 4));
  EXPECT_THAT(Read(forward.attention.block_tables), ElementsAre(7, 5, 0, 2, 3, 1));
  EXPECT_EQ(forward.attention.block_tables.shape[0], 2);
  EXPECT_EQ(forward.attention.block_tables.shape[1], 3);
}

TEST_F(BatchBuilderTest, NumbersLogitsRowsByTokenOfTheBatch) {
  BatchBuilder builder = MakeBuilder();
  builder.Build(MixedBatch());
  EXPECT_THAT(builder.logits_rows(), ElementsAre(0, 2, 3));
  ASSERT_EQ(builder.sampling().size(), 3u);
  EXPECT_EQ(builder.sampling()[2].seed, 3u);
}

TEST_F(BatchBuilderTest, ForgetsTheBatchBefore) {
  BatchBuilder builder = MakeBuilder();
  builder.Build(MixedBatch());
  ScheduledBatch batch;
  batch.sequences.push_back({.first_position = 0,
                             .token_ids = {5},
                             .block_table = {4},
                             .logits_rows = {},
                             .sampling = {}});
  const ForwardBatch forward = builder.Build(batch);
  EXPECT_THAT(Read(forward.token_ids), ElementsAre(5));
  EXPECT_THAT(Read(forward.attention.block_tables), ElementsAre(4, 0, 0));
  EXPECT_TRUE(builder.logits_rows().empty());
  EXPECT_TRUE(builder.sampling().empty());
}

TEST_F(BatchBuilderTest, AllocatesNothingAfterTheStart) {
  BatchBuilder builder = MakeBuilder();
  const int64_t free_bytes = backend_.device->FreeBytes();
  const ForwardBatch first = builder.Build(MixedBatch());
  const ForwardBatch second = builder.Build(MixedBatch());
  EXPECT_EQ(backend_.device->FreeBytes(), free_bytes);
  EXPECT_EQ(first.token_ids.data, second.token_ids.data);
}

}  // namespace
}  // namespace shoal
