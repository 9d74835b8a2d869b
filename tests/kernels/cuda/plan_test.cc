#include "kernels/cuda/plan.h"

#include "kernels/cuda/gemm_tile.h"
#include "tests/kernels/cuda/kernel_fixture.h"

namespace shoal::cuda {
namespace {

class PlanTest : public KernelTest {};

struct PlanResult {
  std::vector<int32_t> offsets, tile_offsets, row_tokens, row_pairs;
};

PlanResult RunPlan(const std::vector<int32_t>& ids, PlanArgs args) {
  const auto size = static_cast<int64_t>(ids.size());
  const DeviceArray<int32_t> expert_ids(ids), offsets(args.num_experts + 1, -1),
      tile_offsets(args.num_experts + 1, -1), row_tokens(size, -1), row_pairs(size, -1),
      counts(PlanCounts(args.num_experts, size), -1);
  args.expert_ids = expert_ids.data();
  args.num_rows = static_cast<int>(size);
  args.offsets = offsets.data();
  args.tile_offsets = tile_offsets.data();
  args.row_tokens = row_tokens.data();
  args.row_pairs = row_pairs.data();
  args.counts = counts.data();
  EnqueuePlan(args, nullptr);
  return {offsets.Read(), tile_offsets.Read(), row_tokens.Read(), row_pairs.Read()};
}

PlanResult ExpectedPlan(const std::vector<int32_t>& ids, const PlanArgs& args) {
  PlanResult expected;
  int tiles = 0;
  for (int e = 0; e < args.num_experts; ++e) {
    const auto begin = static_cast<int>(expected.row_pairs.size());
    expected.offsets.push_back(begin);
    expected.tile_offsets.push_back(tiles);
    for (int i = 0; i < std::ssize(ids); ++i) {
      if (ids[i] - args.first_expert != e) continue;
      expected.row_pairs.push_back(i);
      expected.row_tokens.push_back(i / args.num_routes);
    }
    const auto end = static_cast<int>(expected.row_pairs.size());
    tiles += (end - begin + args.tile_rows - 1) / args.tile_rows;
  }
  expected.offsets.push_back(static_cast<int>(expected.row_pairs.size()));
  expected.tile_offsets.push_back(tiles);
  expected.row_pairs.resize(ids.size(), -1);
  expected.row_tokens.resize(ids.size(), -1);
  return expected;
}

TEST_P(PlanTest, PlanIsAStableSort) {
  struct Case {
    int num_experts, num_routes, num_tokens, first_expert, tile_rows;
  };
  for (const Case& c : std::vector<Case>{{1, 1, 1, 0, 8},
                                         {66, 8, 1, 0, 16},
                                         {66, 8, 64, 0, 16},
                                         {33, 6, 500, 31, 32},
                                         {64, 8, 512, 0, 8},
                                         {10, 16, 257, 50, 128},
                                         {512, 3, 7000, 3, 64}}) {
    std::vector<int32_t> ids(int64_t{c.num_tokens} * c.num_routes);
    for (int32_t& id : ids) id = Between(-2, c.first_expert + c.num_experts + 2);
    PlanArgs args;
    args.first_expert = c.first_expert;
    args.num_experts = c.num_experts;
    args.num_routes = c.num_routes;
    args.tile_rows = c.tile_rows;
    const PlanResult actual = RunPlan(ids, args), expected = ExpectedPlan(ids, args);
    ASSERT_EQ(actual.offsets, expected.offsets);
    ASSERT_EQ(actual.tile_offsets, expected.tile_offsets);
    ASSERT_EQ(actual.row_tokens, expected.row_tokens);
    ASSERT_EQ(actual.row_pairs, expected.row_pairs);

    RowGroups groups;
    groups.num_groups = c.num_experts;
    groups.num_rows = static_cast<int>(ids.size());
    groups.offsets = expected.offsets.data();
    const Tile tile = {.outputs = 16, .rows = c.tile_rows};
    EXPECT_GE(MaxTiles(groups, 16, tile), expected.tile_offsets.back());
  }
}

/// A skewed routing: all rows of one expert, all of none.
TEST_P(PlanTest, PlanOfOneExpertAndOfNone) {
  PlanArgs args;
  args.num_experts = 40;
  args.num_routes = 2;
  args.tile_rows = 8;
  for (int32_t id : {39, 40, -1}) {
    const std::vector<int32_t> ids(5000, id);
    const PlanResult actual = RunPlan(ids, args), expected = ExpectedPlan(ids, args);
    ASSERT_EQ(actual.tile_offsets, expected.tile_offsets);
    ASSERT_EQ(actual.row_pairs, expected.row_pairs);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, PlanTest, KernelTest::Seeds());

}  // namespace
}  // namespace shoal::cuda
