// Which rows each expert has.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace shoal::cuda {

/// Most experts that one rank can have.
inline constexpr int kMaxExperts = 512;

/// Sorts the pairs i = (token, k), i = token * num_routes + k, of local experts by expert, those of
/// one expert in their order. Of the results rows [num_rows] only those of some group are written.
struct PlanArgs {
  const int32_t* expert_ids = nullptr;  // [num_rows]; local if in first_expert + [0, num_experts)
  int first_expert = 0;
  int num_experts = 0;
  int num_rows = 0;  // num_tokens * num_routes
  int num_routes = 1;
  int tile_rows = 1;                // rows of a tile
  int32_t* offsets = nullptr;       // [num_experts + 1] where each expert's rows begin
  int32_t* tile_offsets = nullptr;  // [num_experts + 1] the same in tiles, each of one expert
  int32_t* row_tokens = nullptr;    // [num_rows] the row's token
  int32_t* row_pairs = nullptr;     // [num_rows] its pair
  int32_t* counts = nullptr;        // PlanCounts() elements of working memory
};

/// Elements of working memory.
int64_t PlanCounts(int num_experts, int64_t num_rows);

/// Enqueues the sort.
void EnqueuePlan(const PlanArgs& args, cudaStream_t stream);

}  // namespace shoal::cuda
