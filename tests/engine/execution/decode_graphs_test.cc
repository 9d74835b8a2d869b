#include "engine/execution/decode_graphs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

BatchShape Decode(int64_t num_sequences, int64_t max_context_len) {
  return {.num_tokens = num_sequences,
          .num_sequences = num_sequences,
          .max_query_len = 1,
          .max_context_len = max_context_len};
}

TEST(DecodeGraphs, NumbersOfSequencesGrowByUpToAQuarter) {
  EXPECT_THAT(DecodeGraphs::BatchSizes(512),
              ElementsAre(1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
                          384, 448, 512));
  EXPECT_THAT(DecodeGraphs::BatchSizes(20), ElementsAre(1, 2, 4, 8, 16, 20));
  EXPECT_THAT(DecodeGraphs::BatchSizes(1), ElementsAre(1));
  EXPECT_THAT(DecodeGraphs::BatchSizes(0), IsEmpty());
}

TEST(DecodeGraphs, LengthsDoubleFrom256On) {
  EXPECT_THAT(DecodeGraphs::ContextLengths(4096), ElementsAre(256, 512, 1024, 2048, 4096));
  EXPECT_THAT(DecodeGraphs::ContextLengths(600), ElementsAre(256, 512, 600));
  EXPECT_THAT(DecodeGraphs::ContextLengths(64), ElementsAre(64));
}

TEST(DecodeGraphs, FindsTheSmallestThatAStepFitsInto) {
  DecodeGraphs graphs(20, 600);
  for (DecodeGraph& decode : graphs.graphs()) {
    EXPECT_TRUE(decode.shape.padded);
    decode.graph = std::make_unique<Graph>();
  }
  const auto found = [&](int64_t num_sequences, int64_t max_context_len) {
    const DecodeGraph* decode = graphs.Find(Decode(num_sequences, max_context_len));
    return decode == nullptr ? BatchShape() : decode->shape;
  };
  EXPECT_EQ(found(1, 1).num_sequences, 1);
  EXPECT_EQ(found(1, 1).max_context_len, 256);
  EXPECT_EQ(found(5, 257).num_tokens, 8);
  EXPECT_EQ(found(5, 257).max_context_len, 512);
  EXPECT_EQ(found(20, 600).num_sequences, 20);
  EXPECT_EQ(found(20, 600).max_context_len, 600);
  EXPECT_EQ(found(21, 600).num_sequences, 0);
  EXPECT_EQ(found(1, 601).num_sequences, 0);
}

TEST(DecodeGraphs, FindsNoneForLongerStepsOrIfNoneWasRecorded) {
  DecodeGraphs graphs(20, 600);
  EXPECT_EQ(graphs.Find(Decode(1, 1)), nullptr);
  graphs.graphs()[0].graph = std::make_unique<Graph>();
  EXPECT_EQ(graphs.Find(Decode(1, 1)), &graphs.graphs()[0]);
  EXPECT_EQ(graphs.Find(Decode(2, 1)), nullptr);
  EXPECT_EQ(graphs.Find({.num_tokens = 2, .num_sequences = 1, .max_query_len = 2}), nullptr);
  EXPECT_EQ(graphs.Find(BatchShape()), nullptr) << "nothing at all";
  EXPECT_EQ(DecodeGraphs().Find(Decode(1, 1)), nullptr);
}

}  // namespace
}  // namespace shoal
