#include "engine/model/expert_placement.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>

namespace shoal {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig ModelOf(int num_routed_experts, int num_shared_experts = 0) {
  ModelConfig model;
  model.n_routed_experts = num_routed_experts;
  model.n_shared_experts = num_shared_experts;
  return model;
}

ExpertPlacement Created(const ModelConfig& model, int num_ranks, int num_redundant_experts = 0) {
  auto placement = ExpertPlacement::Create(model, num_ranks, num_redundant_experts);
  SHOAL_CHECK(placement.ok(), "{}", placement.status().ToString());
  return *std::move(placement);
}

/// The rank and the expert of a place.
std::pair<int, int> At(const ExpertPlacement& placement, int32_t place) {
  const int rank = place / placement.experts_per_rank();
  return {rank, placement.experts_of(rank)[place % placement.experts_per_rank()]};
}

TEST(ExpertPlacement, CoversEveryExpertOnceAndEvenly) {
  for (const auto [num_experts, num_ranks] :
       {std::pair(64, 8), std::pair(63, 4), std::pair(5, 5), std::pair(7, 1)}) {
    const ExpertPlacement placement = Created(ModelOf(num_experts), num_ranks);
    ASSERT_EQ(placement.num_ranks(), num_ranks);
    EXPECT_EQ(placement.experts_per_rank(), (num_experts + num_ranks - 1) / num_ranks);
    int next = 0;
    for (int rank = 0; rank < num_ranks; ++rank) {
      EXPECT_GE(std::ssize(placement.experts_of(rank)), num_experts / num_ranks);
      for (const int expert : placement.experts_of(rank)) EXPECT_EQ(expert, next++);
    }
    EXPECT_EQ(next, num_experts);
  }
}

TEST(ExpertPlacement, GivesSecondPlacesToTheRanksWithTheFewestExperts) {
  const ExpertPlacement placement = Created(ModelOf(5), 3, 3);  // 0 | 1 2 | 3 4 before
  EXPECT_THAT(placement.experts_of(0), ElementsAre(0, 1, 2));
  EXPECT_THAT(placement.experts_of(1), ElementsAre(1, 2, 0));
  EXPECT_THAT(placement.experts_of(2), ElementsAre(3, 4));
  EXPECT_EQ(placement.experts_per_rank(), 3);
}

TEST(ExpertPlacement, NeverPutsAnExpertTwiceOnOneRank) {
  for (int num_redundant = 0; num_redundant <= 8; ++num_redundant) {
    const ExpertPlacement placement = Created(ModelOf(8), 3, num_redundant);
    int64_t num_places = 0;
    for (int rank = 0; rank < 3; ++rank) {
      const auto experts = placement.experts_of(rank);
      EXPECT_EQ(std::set(experts.begin(), experts.end()).size(), experts.size());
      num_places += std::ssize(experts);
    }
    EXPECT_EQ(num_places, 8 + num_redundant);
    EXPECT_LE(placement.experts_per_rank(), (8 + num_redundant) / 3 + 1);
  }
}

TEST(ExpertPlacement, ServesEveryTokenFromAPlaceOfTheRightExpert) {
  const ExpertPlacement placement = Created(ModelOf(8, 2), 4, 5);
  for (int home = 0; home < 4; ++home) {
    const std::vector<int32_t> places = placement.PlacesFor(home);
    ASSERT_EQ(places.size(), 10u);
    for (int expert = 0; expert < 10; ++expert) {
      const auto [rank, found] = At(placement, places[expert]);
      EXPECT_EQ(found, expert);
      const auto local = placement.experts_of(home);
      if (std::ranges::find(local, expert) != local.end()) {
        EXPECT_EQ(rank, home) << "the nearest place of expert " << expert;
      }
    }
  }
}

TEST(ExpertPlacement, PutsSharedExpertsOnEveryRankAfterTheRoutedOnes) {
  const ExpertPlacement placement = Created(ModelOf(5, 2), 3, 3);
  EXPECT_EQ(placement.num_experts(), 7);
  EXPECT_THAT(placement.experts_of(0), ElementsAre(0, 1, 2, 5, 6));
  EXPECT_THAT(placement.experts_of(1), ElementsAre(1, 2, 0, 5, 6));
  EXPECT_THAT(placement.experts_of(2), ElementsAre(3, 4, 5, 6));
  EXPECT_EQ(placement.experts_per_rank(), 5);
  for (int home = 0; home < 3; ++home) {
    const std::vector<int32_t> places = placement.PlacesFor(home);
    EXPECT_EQ(At(placement, places[5]), std::pair(home, 5)) << "a token's own rank computes them";
    EXPECT_EQ(At(placement, places[6]), std::pair(home, 6));
  }
}

TEST(ExpertPlacement, SharesTheOtherRanksTokensOutAmongThePlaces) {
  const ExpertPlacement placement = *ExpertPlacement::FromTable(2, {{0}, {1}, {0}, {1}, {1}, {1}});
  std::multiset<int> ranks;
  for (const int home : {1, 3, 4, 5}) {
    ranks.insert(At(placement, placement.PlacesFor(home)[0]).first);
  }
  EXPECT_THAT(ranks, ElementsAre(0, 0, 2, 2));
}

TEST(ExpertPlacement, PlacesNothingForADenseModel) {
  for (int num_shared_experts : {0, 2}) {  // shared experts belong to MoE layers, of which there
                                           // are none
    const ExpertPlacement placement = Created(ModelOf(0, num_shared_experts), 3);
    EXPECT_EQ(placement.num_ranks(), 3);
    EXPECT_EQ(placement.num_experts(), 0);
    EXPECT_EQ(placement.experts_per_rank(), 0);
    EXPECT_TRUE(placement.PlacesFor(2).empty());
  }
}

TEST(ExpertPlacement, NamesTheFieldThatIsOutOfRange) {
  const auto error = [](int num_experts, int num_ranks, int num_redundant_experts) {
    const absl::Status status =
        ExpertPlacement::Create(ModelOf(num_experts, 2), num_ranks, num_redundant_experts).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(error(16, 17, 0), "num_ranks is 17, expected 1 to 16");
  EXPECT_THAT(error(16, 0, 0), HasSubstr("num_ranks is 0"));
  EXPECT_THAT(error(0, 0, 0), HasSubstr("num_ranks is 0"));
  EXPECT_EQ(error(16, 2, 17), "num_redundant_experts is 17, expected 0 to 16");
  EXPECT_EQ(error(16, 2, -1), "num_redundant_experts is -1, expected 0 to 16");
  EXPECT_EQ(error(16, 1, 1), "num_redundant_experts is 1, expected 0 to 0");
  EXPECT_EQ(error(0, 2, 1), "num_redundant_experts is 1, expected 0 to 0");
}

TEST(ExpertPlacement, SaysWhatIsWrongWithATable) {
  const auto error = [](std::vector<std::vector<int>> experts) {
    const absl::Status status = ExpertPlacement::FromTable(3, std::move(experts)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(error({{0, 1}, {0}}), "expert 2 is on no rank");
  EXPECT_EQ(error({{0, 1}, {2, 1, 2}}), "expert 2 is on rank 1 more than once");
  EXPECT_THAT(error({{0, 1}, {2, 3}}), AllOf(HasSubstr("is 3"), HasSubstr("0 to 2")));
  EXPECT_EQ(error({{0, 1, 2}, {}}), "rank 1 has no experts");
  EXPECT_THAT(error({}), HasSubstr("no ranks"));
}

}  // namespace
}  // namespace shoal
