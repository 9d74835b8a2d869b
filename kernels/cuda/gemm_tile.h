// How matrix products are cut into tiles: what their kernels, their host side and their tests
// share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/gemm.h"

namespace shoal::cuda {

/// Elements of each row that one stage of a pipeline holds: 128 bytes.
inline constexpr int kStageDepth = 64;

/// A block's part of a product: so many outputs (rows of the weight) of so many rows of x.
struct Tile {
  int outputs = 0;
  int rows = 0;
  int output_warps = 0;  // the warps of a block divide its outputs in so many parts
  int row_warps = 0;     // and its rows in so many
  int stages = 0;        // of the pipeline
  int blocks = 0;        // that the registers of a multiprocessor have room for, at least
};

/// From that for few rows of a small weight to that for many of a large one. Which one is taken
/// changes no result: every sum has the same order in all of them.
inline constexpr Tile kTiles[] = {
    {.outputs = 16, .rows = 8, .output_warps = 1, .row_warps = 1, .stages = 16, .blocks = 4},
    {.outputs = 64, .rows = 16, .output_warps = 4, .row_warps = 1, .stages = 5, .blocks = 4},
    {.outputs = 64, .rows = 32, .output_warps = 4, .row_warps = 1, .stages = 6, .blocks = 3},
    {.outputs = 128, .rows = 64, .output_warps = 2, .row_warps = 2, .stages = 4, .blocks = 2},
    {.outputs = 256, .rows = 128, .output_warps = 4, .row_warps = 2, .stages = 3, .blocks = 1},
};
inline constexpr int kNumTiles = sizeof(kTiles) / sizeof(Tile);

/// Shared memory of a block.
constexpr int SharedBytes(const Tile& tile) {
  return tile.stages * (tile.outputs + tile.rows) * kStageDepth *
         static_cast<int>(sizeof(BFloat16));
}

/// The rows of a product in groups, each of which has a weight of its own. Without `offsets` and
/// `expert_ids` all rows are of one group.
struct RowGroups {
  int num_groups = 1;
  int num_rows = 0;                       // of all groups; if planned, at most
  const int32_t* offsets = nullptr;       // [num_groups + 1] where each group's rows begin
  const int32_t* tile_offsets = nullptr;  // [num_groups + 1] the same, in tiles
  // [num_rows]: row r is alone, in group expert_ids[r] - first_expert, or in none.
  const int32_t* expert_ids = nullptr;
  int first_expert = 0;
};

/// What a kernel gets: out[out_rows[r]] = weight of r's group times x[x_rows[r]]. Without x_rows or
/// out_rows it is r itself.
struct GemmArgs {
  RowGroups groups = {};
  const BFloat16* weight = nullptr;  // [num_groups, num_outputs, depth]
  const BFloat16* x = nullptr;       // [.., depth], x_stride apart
  const BFloat16* bias = nullptr;    // [num_outputs], or null
  void* out = nullptr;               // [.., num_outputs], or of SwiGLU [.., num_outputs / 2]
  const int32_t* x_rows = nullptr;
  const int32_t* out_rows = nullptr;
  int x_stride = 0;
  int num_outputs = 0;
  int depth = 0;  // a multiple of 8
  bool float_out = false;
};

/// Where element 0 of an output's weights, or of a row, lies.
constexpr int64_t WeightOffset(int group, int output, int num_outputs, int depth) {
  return (int64_t{group} * num_outputs + output) * depth;
}
constexpr int64_t RowOffset(int row, int stride) { return int64_t{row} * stride; }

constexpr int DivideUp(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

/// How to cut a product: an index of kTiles, and how many blocks share the tiles at most.
struct Cut {
  int tile = 0;
  int max_blocks = 0;
};

/// Tiles of a product, at most: it is not known how many rows each group has.
int64_t MaxTiles(const RowGroups& groups, int num_outputs, const Tile& tile);

/// What a device has.
struct Machine {
  int multiprocessors = 0;
  int shared_bytes = 0;        // of a multiprocessor
  int block_shared_bytes = 0;  // of a block, at most
};
Machine ThisMachine();

/// The cut that should be the fastest.
Cut ChooseCut(const GemmArgs& args, const Machine& machine);

/// Enqueue a product: as it is, with bias; or of gate and up, whose weight rows are interleaved in
/// groups of 8, with SwiGLU: out = gate / (1 + e^-gate) * up.
void EnqueueProduct(const GemmArgs& args, const Cut& cut, cudaStream_t stream);
void EnqueueSwiGlu(const GemmArgs& args, const Cut& cut, cudaStream_t stream);

/// Linear() and Ffn() cut in this way.
void Linear(const LinearArgs& args, const Cut& cut, cudaStream_t stream);
void Ffn(const FfnArgs& args, const Cut& cut, cudaStream_t stream);

}  // namespace shoal::cuda
