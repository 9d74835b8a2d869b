#include "engine/model/expert_placement.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace shoal {
namespace {

bool Contains(const std::vector<int>& experts, int expert) {
  return std::ranges::find(experts, expert) != experts.end();
}

absl::Status CheckRange(const char* field, int value, int min, int max) {
  if (min <= value && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected {} to {}", field, value, min, max));
}

}  // namespace

absl::StatusOr<ExpertPlacement> ExpertPlacement::Create(const ModelConfig& model, int num_ranks,
                                                        int num_redundant_experts) {
  const int num_experts = model.n_routed_experts;
  const int max_ranks = num_experts > 0 ? num_experts : std::numeric_limits<int>::max();
  RETURN_IF_ERROR(CheckRange("num_ranks", num_ranks, 1, max_ranks));
  RETURN_IF_ERROR(CheckRange("num_redundant_experts", num_redundant_experts, 0,
                             num_ranks > 1 ? num_experts : 0));
  std::vector<std::vector<int>> experts(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int end = num_experts * (rank + 1) / num_ranks;
    for (int e = num_experts * rank / num_ranks; e < end; ++e) experts[rank].push_back(e);
  }
  for (int expert = 0; expert < num_redundant_experts; ++expert) {
    const auto cost = [expert](const std::vector<int>& rank) {
      return std::pair(Contains(rank, expert), rank.size());
    };
    std::ranges::min_element(experts, {}, cost)->push_back(expert);
  }
  for (std::vector<int>& rank : experts) {
    for (int shared = num_experts; shared < model.num_experts(); ++shared) rank.push_back(shared);
  }
  return FromTable(model.num_experts(), std::move(experts));
}

absl::StatusOr<ExpertPlacement> ExpertPlacement::FromTable(int num_experts,
                                                           std::vector<std::vector<int>> experts) {
  if (experts.empty()) return absl::InvalidArgumentError("the expert placement has no ranks");
  ExpertPlacement placement;
  placement.num_experts_ = num_experts;
  std::vector<int> num_places(num_experts);
  for (size_t rank = 0; rank < experts.size(); ++rank) {
    std::vector<bool> seen(num_experts);
    for (const int expert : experts[rank]) {
      RETURN_IF_ERROR(CheckRange("an expert of the placement", expert, 0, num_experts - 1));
      if (seen[expert]) {
        return absl::InvalidArgumentError(
            fmt::format("expert {} is on rank {} more than once", expert, rank));
      }
      seen[expert] = true;
      ++num_places[expert];
    }
    if (num_experts > 0 && experts[rank].empty()) {
      return absl::InvalidArgumentError(fmt::format("rank {} has no experts", rank));
    }
    placement.experts_per_rank_ =
        std::max(placement.experts_per_rank_, static_cast<int>(experts[rank].size()));
  }
  if (const auto missing = std::ranges::find(num_places, 0); missing != num_places.end()) {
    return absl::InvalidArgumentError(
        fmt::format("expert {} is on no rank", missing - num_places.begin()));
  }
  placement.experts_ = std::move(experts);
  return placement;
}

std::vector<int32_t> ExpertPlacement::PlacesFor(int home) const {
  std::vector<std::vector<int32_t>> places(num_experts_);  // of each expert, by rank
  std::vector<int> turns(num_experts_, home);              // of those ranks that lack the expert
  std::vector<int32_t> chosen(num_experts_, -1);
  for (int rank = 0; rank < num_ranks(); ++rank) {
    for (size_t i = 0; i < experts_[rank].size(); ++i) {
      const int expert = experts_[rank][i];
      const int32_t place = rank * experts_per_rank_ + static_cast<int32_t>(i);
      places[expert].push_back(place);
      if (rank == home) chosen[expert] = place;
      if (rank < home) --turns[expert];
    }
  }
  for (int expert = 0; expert < num_experts_; ++expert) {
    // Who has the first turn differs from expert to expert, so that no rank gets all of them.
    const size_t turn = static_cast<size_t>(turns[expert] + expert) % places[expert].size();
    if (chosen[expert] < 0) chosen[expert] = places[expert][turn];
  }
  return chosen;
}

}  // namespace shoal
