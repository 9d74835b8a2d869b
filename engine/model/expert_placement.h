// ExpertPlacement: which rank has which experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/model_config.h"
#include "kernels/status.h"

namespace shoal {

/// Each rank has places for `experts_per_rank()` experts; place i of rank r has the number r *
/// experts_per_rank() + i in the whole group. Every expert has at least one place; where it has
/// several, the rank that a token is on decides which one computes it, which changes no bit of the
/// result. Shared experts, numbered after the routed ones, have one on every rank. The same for all
/// layers. Immutable.
class ExpertPlacement {
 public:
  /// The model's routed experts in consecutive ranges, whose sizes differ by one at most; then
  /// `num_redundant_experts` second places, one after the other from expert 0 on, each on the rank
  /// with the fewest experts that lacks it; then the shared experts. INVALID_ARGUMENT names the
  /// field: num_ranks is 1 to the number of routed experts (any if there are none),
  /// num_redundant_experts 0 to that number, and 0 on a single rank.
  static absl::StatusOr<ExpertPlacement> Create(const ModelConfig& model, int num_ranks,
                                                int num_redundant_experts);

  /// experts[r]: the experts of rank r by place, of `num_experts`, each at most once there and at
  /// least once anywhere; no rank is without, unless there are none. INVALID_ARGUMENT says which is
  /// not so.
  static absl::StatusOr<ExpertPlacement> FromTable(int num_experts,
                                                   std::vector<std::vector<int>> experts);

  int num_experts() const { return num_experts_; }
  int num_ranks() const { return static_cast<int>(experts_.size()); }
  int experts_per_rank() const { return experts_per_rank_; }
  /// By place; maybe fewer than experts_per_rank().
  std::span<const int> experts_of(int rank) const { return experts_[rank]; }
  /// By expert: the place that serves the tokens of rank `home`. Its own if it has one; otherwise
  /// the ranks take turns.
  std::vector<int32_t> PlacesFor(int home) const;

 private:
  ExpertPlacement() = default;

  int num_experts_ = 0;
  int experts_per_rank_ = 0;
  std::vector<std::vector<int>> experts_;
};

}  // namespace shoal
