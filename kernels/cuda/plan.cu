#include "kernels/cuda/plan.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda {
namespace {

// A stable counting sort. A block has a part of the pairs and each of its warps a part of those, in
// order; a warp takes 32 at once and finds which of them have the same expert. If one block is not
// enough, the blocks count, one block adds up, and the blocks count again to place.

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlockPairs = 4096;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Shared {
  int counts[kWarps][kMaxExperts];  // of each warp's pairs; then those of the warps before it
  int totals[kMaxExperts];
  int begins[kMaxExperts];  // the first row of the block's pairs of each expert
};

/// A block's part of the pairs.
struct Part {
  int begin = 0;
  int end = 0;
};

__device__ Part WholePart(const PlanArgs& args) { return {0, args.num_rows}; }

__device__ Part BlockPart(const PlanArgs& args) {
  const int begin = static_cast<int>(blockIdx.x) * kBlockPairs;
  return {begin, min(begin + kBlockPairs, args.num_rows)};
}

/// Calls use(pair, expert, rank, alike) for 32 pairs of the warp's after the other: expert is
/// num_experts for those of no local one, rank the pair's place among the `alike` of its expert. By
/// the whole warp.
template <typename Use>
__device__ void ForEachPair(const PlanArgs& args, const Part& part, const Use& use) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_pairs = (part.end - part.begin + kThreads - 1) / kThreads * 32;
  const int begin = part.begin + warp * warp_pairs;
  const int end = min(begin + warp_pairs, part.end);
  for (int first = begin; first < end; first += 32) {
    const int pair = first + lane;
    int expert = args.num_experts;
    if (pair < end) {
      const int id = __ldg(args.expert_ids + pair);
      if (id >= args.first_expert && id - args.first_expert < args.num_experts) {
        expert = id - args.first_expert;
      }
    }
    unsigned alike = kAllLanes;
    for (int bit = 1; bit <= args.num_experts; bit *= 2) {
      const unsigned set = __ballot_sync(kAllLanes, (expert & bit) != 0);
      alike &= expert & bit ? set : ~set;
    }
    use(pair, expert, __popc(alike & ((1u << lane) - 1)), __popc(alike));
  }
}

/// Counts the part's pairs: counts[w][e] becomes how many of expert e the warps before w have,
/// totals[e] how many all have. By the whole block.
__device__ void CountPart(const PlanArgs& args, const Part& part, Shared& shared) {
  int* const counts = shared.counts[threadIdx.x / 32];
  for (int expert = static_cast<int>(threadIdx.x) % 32; expert < args.num_experts; expert += 32) {
    counts[expert] = 0;
  }
  __syncwarp();
  ForEachPair(args, part, [&](int, int expert, int rank, int alike) {
    if (rank == 0 && expert < args.num_experts) counts[expert] += alike;
    __syncwarp();
  });
  __syncthreads();
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {
    int sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const int count = shared.counts[warp][expert];
      shared.counts[warp][expert] = sum;
      sum += count;
    }
    shared.totals[expert] = sum;
  }
  __syncthreads();
}

/// The sum of the lanes up to this one. By the whole warp.
__device__ int PrefixSum(int value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

/// From totals to offsets and tile_offsets, and begins likewise. By the whole block.
__device__ void WriteOffsets(const PlanArgs& args, Shared& shared) {
  if (threadIdx.x < 32) {
    int rows = 0, tiles = 0;
    for (int first = 0; first < args.num_experts; first += 32) {
      const int expert = first + static_cast<int>(threadIdx.x);
      const int count = expert < args.num_experts ? shared.totals[expert] : 0;
      const int end = rows + PrefixSum(count);
      const int expert_tiles = (count + args.tile_rows - 1) / args.tile_rows;
      const int tiles_end = tiles + PrefixSum(expert_tiles);
      if (expert < args.num_experts) {
        shared.begins[expert] = end - count;
        args.offsets[expert] = end - count;
        args.tile_offsets[expert] = tiles_end - expert_tiles;
      }
      rows = __shfl_sync(kAllLanes, end, 31);
      tiles = __shfl_sync(kAllLanes, tiles_end, 31);
    }
    if (threadIdx.x == 0) {
      args.offsets[args.num_experts] = rows;
      args.tile_offsets[args.num_experts] = tiles;
    }
  }
  __syncthreads();
}

/// Writes the rows of the part, after CountPart() and with begins set. By the whole block.
__device__ void PlacePart(const PlanArgs& args, const Part& part, Shared& shared) {
  int* const counts = shared.counts[threadIdx.x / 32];
  ForEachPair(args, part, [&](int pair, int expert, int rank, int alike) {
    const bool local = expert < args.num_experts;
    if (local) {
      const int row = shared.begins[expert] + counts[expert] + rank;
      args.row_tokens[row] = pair / args.num_routes;
      args.row_pairs[row] = pair;
    }
    __syncwarp();
    if (local && rank == 0) counts[expert] += alike;
    __syncwarp();
  });
}

__global__ void __launch_bounds__(kThreads) PlanKernel(const PlanArgs args) {
  auto& shared = SharedMemory<Shared>();
  CountPart(args, WholePart(args), shared);
  WriteOffsets(args, shared);
  PlacePart(args, WholePart(args), shared);
}

/// counts[block][expert] = the block's pairs of the expert.
__global__ void __launch_bounds__(kThreads) PlanCountKernel(const PlanArgs args) {
  auto& shared = SharedMemory<Shared>();
  CountPart(args, BlockPart(args), shared);
  int* const counts = args.counts + int64_t{blockIdx.x} * args.num_experts;
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {
    counts[expert] = shared.totals[expert];
  }
}

/// counts[block][expert] = the first row of the block's pairs of the expert. One block.
__global__ void __launch_bounds__(kThreads) PlanOffsetsKernel(const PlanArgs args, int num_blocks) {
  auto& shared = SharedMemory<Shared>();
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {
    int sum = 0;
#pragma unroll 8
    for (int block = 0; block < num_blocks; ++block) {
      sum += args.counts[int64_t{block} * args.num_experts + expert];
    }
    shared.totals[expert] = sum;
  }
  __syncthreads();
  WriteOffsets(args, shared);
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {
    int row = shared.begins[expert];
    // Some loads at once, which do not wait for each other.
    constexpr int kLoads = 8;
    for (int first = 0; first < num_blocks; first += kLoads) {
      int* const column = args.counts + int64_t{first} * args.num_experts + expert;
      int block_counts[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        block_counts[i] = first + i < num_blocks ? column[i * args.num_experts] : 0;
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i < num_blocks) column[i * args.num_experts] = row;
        row += block_counts[i];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) PlanPlaceKernel(const PlanArgs args) {
  auto& shared = SharedMemory<Shared>();
  const int* const counts = args.counts + int64_t{blockIdx.x} * args.num_experts;
  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {
    shared.begins[expert] = counts[expert];
  }
  CountPart(args, BlockPart(args), shared);
  PlacePart(args, BlockPart(args), shared);
}

int NumBlocks(int64_t num_rows) {
  return static_cast<int>((num_rows + kBlockPairs - 1) / kBlockPairs);
}

}  // namespace

int64_t PlanCounts(int num_experts, int64_t num_rows) {
  return int64_t{NumBlocks(num_rows)} * num_experts;
}

void EnqueuePlan(const PlanArgs& args, cudaStream_t stream) {
  const int num_blocks = NumBlocks(args.num_rows);
  const Grid one = {dim3(1), dim3(kThreads), sizeof(Shared)};
  const Grid all = {dim3(num_blocks), dim3(kThreads), sizeof(Shared)};
  if (num_blocks <= 1) {
    Launch(PlanKernel, one, stream, args);
    return;
  }
  Launch(PlanCountKernel, all, stream, args);
  Launch(PlanOffsetsKernel, one, stream, args, num_blocks);
  Launch(PlanPlaceKernel, all, stream, args);
}

}  // namespace shoal::cuda
