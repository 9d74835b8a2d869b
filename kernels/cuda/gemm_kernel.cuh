// The kernel of matrix products. Operands are swapped, out^T = weight x^T, so that the 16 rows of a
// tensor core's operand are weights, of which there are always enough, and its 8 columns are
// tokens.
//
// Blocks walk a list of tiles, each taking every gridDim.x-th. For a block its tiles are one long
// sequence of steps of kStageDepth: copies from global to shared memory run some stages ahead of
// the arithmetic, also from one tile to the next, so that the memory never waits.
//
// Each element is one chain of additions in its accumulator, over ascending elements of the row:
// in every tile the same.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>

#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda {

/// kTiles[kIndex] as constants.
template <int kIndex>
struct Geometry {
  static constexpr int kOutputs = kTiles[kIndex].outputs;
  static constexpr int kRows = kTiles[kIndex].rows;
  static constexpr int kOutputWarps = kTiles[kIndex].output_warps;
  static constexpr int kRowWarps = kTiles[kIndex].row_warps;
  static constexpr int kStages = kTiles[kIndex].stages;
  static constexpr int kMinBlocks = kTiles[kIndex].blocks;
  static constexpr int kThreads = 32 * kOutputWarps * kRowWarps;
  // What one warp multiplies: blocks of 16 outputs and blocks of 8 rows.
  static constexpr int kOutputBlocks = kOutputs / kOutputWarps / 16;
  static constexpr int kRowBlocks = kRows / kRowWarps / 8;

  struct Stage {
    BFloat16 weight[kOutputs][kStageDepth];
    BFloat16 x[kRows][kStageDepth];
  };
  struct alignas(128) Shared {
    Stage stages[kStages];
  };
  static_assert(sizeof(Shared) == SharedBytes(kTiles[kIndex]));

  using Accumulators = float[kOutputBlocks][kRowBlocks][4];
};

/// Byte offset of the 16 bytes `chunk` of row `row` in a matrix of a stage. The chunks of a row are
/// permuted so that one and the same chunk of 8 rows lies in 8 different groups of banks.
constexpr int ChunkOffset(int row, int chunk) {
  return row * kStageDepth * static_cast<int>(sizeof(BFloat16)) + ((chunk ^ (row & 7)) << 4);
}

/// Where a tile of the list lies.
struct Place {
  int group = 0;
  int first_output = 0;
  int first_row = 0;
  int num_rows = 0;  // of first_row's group from there on, at most the tile's
};

/// The group that `tile` (all tiles of the same rows counted as one) is of: the last one that
/// begins there or before. By the whole warp.
__device__ __forceinline__ int FindGroup(const RowGroups& groups, int tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int count = 0;
#pragma unroll 4
  for (int first = 0; first < groups.num_groups; first += 32) {
    const int group = first + lane;
    const bool begun = group < groups.num_groups && __ldg(groups.tile_offsets + group) <= tile;
    count += __popc(__ballot_sync(0xffffffffu, begun));
  }
  return count - 1;
}

/// The tiles of a product as a list. Those of a group follow each other, and of it those of the
/// same weights, so that these are read from device memory once. Where a group has many rows, they
/// are taken in spans: the rows in use then stay in the cache together with the weights.
template <typename G>
class TileList {
 public:
  __device__ __forceinline__ explicit TileList(const GemmArgs& args)
      : output_tiles_((args.num_outputs + G::kOutputs - 1) / G::kOutputs) {
    const RowGroups& groups = args.groups;
    const int row_tiles = groups.expert_ids != nullptr ? groups.num_rows
                          : groups.offsets != nullptr
                              ? __ldg(groups.tile_offsets + groups.num_groups)
                              : (groups.num_rows + G::kRows - 1) / G::kRows;
    size = row_tiles * output_tiles_;
  }

  /// The first one with any rows of tile, tile + gridDim.x and so on; `size` or more if there is
  /// none. By the whole warp.
  __device__ __forceinline__ int Find(const RowGroups& groups, int tile, Place& place) const {
    for (; tile < size; tile += static_cast<int>(gridDim.x)) {
      place = Locate(groups, tile);
      if (place.num_rows > 0) break;
    }
    return tile;
  }

  int size;

 private:
  static constexpr int kSpan = 16;  // tiles of rows

  __device__ __forceinline__ Place Locate(const RowGroups& groups, int tile) const {
    Place place;
    if (groups.expert_ids != nullptr) {
      place.first_row = tile / output_tiles_;
      place.first_output = tile % output_tiles_ * G::kOutputs;
      const int group = __ldg(groups.expert_ids + place.first_row) - groups.first_expert;
      const bool local = group >= 0 && group < groups.num_groups;
      place.group = local ? group : 0;
      place.num_rows = local ? 1 : 0;
      return place;
    }
    int begin = 0, end = groups.num_rows;
    if (groups.offsets != nullptr) {
      place.group = FindGroup(groups, tile / output_tiles_);
      begin = __ldg(groups.offsets + place.group);
      end = __ldg(groups.offsets + place.group + 1);
      tile -= __ldg(groups.tile_offsets + place.group) * output_tiles_;
    }
    const int row_tiles = (end - begin + G::kRows - 1) / G::kRows;
    const int span = tile / (kSpan * output_tiles_);
    tile -= span * kSpan * output_tiles_;
    const int span_tiles = min(kSpan, row_tiles - span * kSpan);
    place.first_output = tile / span_tiles * G::kOutputs;
    place.first_row = begin + (span * kSpan + tile % span_tiles) * G::kRows;
    place.num_rows = min(G::kRows, end - place.first_row);
    return place;
  }

  int output_tiles_;
};

/// Copies a block's tiles to shared memory, one step after the other. Each thread copies the same
/// chunk of every kPassRows-th row.
template <typename G>
class Loader {
 public:
  __device__ __forceinline__ Loader(const GemmArgs& args, const TileList<G>& tiles)
      : tile_(static_cast<int>(blockIdx.x)) {
    Start(args, tiles);
  }

  __device__ __forceinline__ bool done(const TileList<G>& tiles) const {
    return tile_ >= tiles.size;
  }

  /// Part kPart of kParts of a step. Beyond the weight, the rows and their depth: zeros.
  template <int kPart, int kParts>
  __device__ __forceinline__ void Copy(const GemmArgs& args, const TileList<G>& tiles,
                                       typename G::Stage& stage) {
    constexpr int kEach = (kOutputPasses + kRowPasses + kParts - 1) / kParts;
    if (done(tiles)) return;
    const bool inside = k_ + 8 * Chunk() < args.depth;
    auto* const weight = reinterpret_cast<unsigned char*>(&stage.weight);
    auto* const x = reinterpret_cast<unsigned char*>(&stage.x);
#pragma unroll
    for (int i = kPart * kEach; i < (kPart + 1) * kEach; ++i) {
      if (i < kOutputPasses) {
        const int output = FirstRow() + i * kPassRows;
        CopyAsync16(weight + ChunkOffset(output, Chunk()),
                    weight_ + RowOffset(i * kPassRows, args.depth),
                    inside && output < num_outputs_);
      } else if (i < kOutputPasses + kRowPasses) {
        const int pass = i - kOutputPasses;
        const int row = FirstRow() + pass * kPassRows;
        CopyAsync16(x + ChunkOffset(row, Chunk()), x_[pass], inside && row < num_rows_);
      }
    }
  }

  /// On to the next step.
  __device__ __forceinline__ void Advance(const GemmArgs& args, const TileList<G>& tiles) {
    k_ += kStageDepth;
    weight_ += kStageDepth;
#pragma unroll
    for (int pass = 0; pass < kRowPasses; ++pass) x_[pass] += kStageDepth;
    if (k_ < args.depth) return;
    k_ = 0;
    tile_ += static_cast<int>(gridDim.x);
    Start(args, tiles);
  }

 private:
  static constexpr int kChunks = kStageDepth / 8;
  static constexpr int kPassRows = G::kThreads / kChunks;
  static constexpr int kOutputPasses = G::kOutputs / kPassRows;
  static constexpr int kRowPasses = G::kRows / kPassRows;
  static_assert(G::kOutputs % kPassRows == 0 && G::kRows % kPassRows == 0);

  static __device__ __forceinline__ int Chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  static __device__ __forceinline__ int FirstRow() {
    return static_cast<int>(threadIdx.x) / kChunks;
  }

  __device__ __forceinline__ void Start(const GemmArgs& args, const TileList<G>& tiles) {
    Place place;
    tile_ = tiles.Find(args.groups, tile_, place);
    if (done(tiles)) return;
    num_rows_ = place.num_rows;
    num_outputs_ = args.num_outputs - place.first_output;
    weight_ =
        args.weight + 8 * Chunk() +
        WeightOffset(place.group, place.first_output + FirstRow(), args.num_outputs, args.depth);
#pragma unroll
    for (int pass = 0; pass < kRowPasses; ++pass) {
      int row = FirstRow() + pass * kPassRows;
      const bool live = row < num_rows_;
      row += place.first_row;
      if (args.x_rows != nullptr && live) row = __ldg(args.x_rows + row);
      x_[pass] = args.x + RowOffset(row, args.x_stride) + 8 * Chunk();
    }
  }

  int tile_;
  int k_ = 0;
  int num_outputs_ = 0;
  int num_rows_ = 0;
  // This thread's chunk of the step, of its first output and of its rows.
  const BFloat16* weight_ = nullptr;
  const BFloat16* x_[kRowPasses] = {};
};

/// A warp's operands of 16 elements of depth.
template <typename G>
struct Operands {
  static constexpr int kRowLoads = (G::kRowBlocks + 1) / 2;

  /// From a stage, elements 16 * part and on. By the whole warp.
  __device__ __forceinline__ void Load(const typename G::Stage& stage, int part) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int output = warp % G::kOutputWarps * (16 * G::kOutputBlocks) + lane % 16;
    const auto* const weights = reinterpret_cast<const unsigned char*>(&stage.weight) +
                                (ChunkOffset(output, lane / 16) ^ (part << 5));
#pragma unroll
    for (int i = 0; i < G::kOutputBlocks; ++i) {
      LoadMatrices(weights + ChunkOffset(16 * i, 0), weight[i]);
    }
    // Two blocks of rows at once; if there is but one, it comes twice.
    const int row =
        warp / G::kOutputWarps * 16 + lane % 8 + (G::kRowBlocks > 1 ? lane / 16 * 8 : 0);
    const auto* const rows = reinterpret_cast<const unsigned char*>(&stage.x) +
                             (ChunkOffset(row, lane / 8 % 2) ^ (part << 5));
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      LoadMatrices(rows + ChunkOffset(16 * G::kRowWarps * i, 0), x[i]);
    }
  }

  /// The product with blocks kBegin to kEnd of the rows. By the whole warp.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void Multiply(typename G::Accumulators& sums) const {
#pragma unroll
    for (int j = kBegin; j < kEnd; ++j) {
#pragma unroll
      for (int i = 0; i < G::kOutputBlocks; ++i) {
        MultiplyAdd(sums[i][j], weight[i], x[j / 2][j % 2 * 2], x[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  uint32_t weight[G::kOutputBlocks][4];
  uint32_t x[kRowLoads][4];
};

template <int kThreads>
__device__ __forceinline__ void BlockBarrier() {
  if constexpr (kThreads == 32) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

/// Between the lanes of a warp, so that a lane has two consecutive outputs of one row instead of
/// one output of two: from (low, high), output lane / 4 of rows 2 (lane % 4), + 1, to outputs
/// 2 (lane / 8), + 1 of row 2 (lane % 4) + lane / 4 % 2. By the whole warp.
__device__ __forceinline__ void PairOutputs(float& low, float& high) {
  const bool odd = threadIdx.x & 4;
  const float received = __shfl_xor_sync(0xffffffffu, odd ? low : high, 4);
  (odd ? low : high) = received;
}

/// The row of a block of 8 that this lane has after PairOutputs().
__device__ __forceinline__ int PairedRow() {
  return static_cast<int>(threadIdx.x % 4 * 2 + threadIdx.x / 4 % 2);
}

/// Writes sums, plus the bias, rounded.
struct StoreProduct {
  /// One block of 16 outputs of 8 rows; out_row is that of the lane's row, negative: none. By the
  /// whole warp.
  static __device__ __forceinline__ void Store(const GemmArgs& args, float (&sums)[4],
                                               int first_output, int out_row) {
    PairOutputs(sums[0], sums[1]);
    PairOutputs(sums[2], sums[3]);
    // From two outputs below and two above the 8th to four consecutive ones.
    const bool above = threadIdx.x & 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float received = __shfl_xor_sync(0xffffffffu, above ? sums[i] : sums[2 + i], 8);
      (above ? sums[i] : sums[2 + i]) = received;
    }
    const int output = first_output + (above ? 8 : 0) + static_cast<int>(threadIdx.x) % 32 / 16 * 4;
    if (out_row < 0 || output >= args.num_outputs) return;
    const int count = min(4, args.num_outputs - output);
    if (args.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) sums[i] += static_cast<float>(args.bias[output + i]);
      }
    }
    const int64_t at = RowOffset(out_row, args.num_outputs) + output;
    if (args.num_outputs % 4 == 0) {
      StoreFour(args, at, sums);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) StoreOne(args, at + i, sums[i]);
      }
    }
  }

 private:
  static __device__ __forceinline__ void StoreFour(const GemmArgs& args, int64_t at,
                                                   const float (&sums)[4]) {
    if (args.float_out) {
      *reinterpret_cast<float4*>(static_cast<float*>(args.out) + at) =
          make_float4(sums[0], sums[1], sums[2], sums[3]);
    } else {
      *reinterpret_cast<uint2*>(static_cast<BFloat16*>(args.out) + at) =
          make_uint2(PackBFloat16(sums[0], sums[1]), PackBFloat16(sums[2], sums[3]));
    }
  }

  static __device__ __forceinline__ void StoreOne(const GemmArgs& args, int64_t at, float sum) {
    if (args.float_out) {
      static_cast<float*>(args.out)[at] = sum;
    } else {
      static_cast<BFloat16*>(args.out)[at].bits = static_cast<uint16_t>(PackBFloat16(sum, 0));
    }
  }
};

/// Writes gate / (1 + e^-gate) * up, rounded, of sums whose lower 8 outputs of 16 are of gate and
/// whose upper 8 are of up.
struct StoreSwiGlu {
  static __device__ __forceinline__ void Store(const GemmArgs& args, float (&sums)[4],
                                               int first_output, int out_row) {
    float low = SwiGlu(sums[0], sums[2]);
    float high = SwiGlu(sums[1], sums[3]);
    PairOutputs(low, high);
    if (out_row < 0 || first_output >= args.num_outputs) return;
    const int feature = first_output / 2 + static_cast<int>(threadIdx.x) % 32 / 8 * 2;
    auto* const out = static_cast<BFloat16*>(args.out) + RowOffset(out_row, args.num_outputs / 2);
    *reinterpret_cast<uint32_t*>(out + feature) = PackBFloat16(low, high);
  }

 private:
  // An exact division is a third of the instructions of a large tile's store. The approximate one
  // is 0 for divisors above 2^126, of gates below -87: their quotients are no larger than 1e-36.
  static __device__ __forceinline__ float SwiGlu(float gate, float up) {
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
  }
};

/// Writes a warp's part of a tile.
template <typename G, typename Epilogue>
__device__ __forceinline__ void StoreTile(const GemmArgs& args, const Place& place,
                                          typename G::Accumulators& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_output = place.first_output + warp % G::kOutputWarps * (16 * G::kOutputBlocks);
#pragma unroll
  for (int j = 0; j < G::kRowBlocks; ++j) {
    const int row = (j / 2 * G::kRowWarps + warp / G::kOutputWarps) * 16 + j % 2 * 8 + PairedRow();
    int out_row = -1;
    if (row < place.num_rows) {
      out_row = place.first_row + row;
      if (args.out_rows != nullptr) out_row = __ldg(args.out_rows + out_row);
    }
#pragma unroll
    for (int i = 0; i < G::kOutputBlocks; ++i) {
      Epilogue::Store(args, sums[i][j], first_output + 16 * i, out_row);
    }
  }
}

template <int kIndex, typename Epilogue>
__global__ void __launch_bounds__(Geometry<kIndex>::kThreads, Geometry<kIndex>::kMinBlocks)
    GemmKernel(const GemmArgs args) {
  using G = Geometry<kIndex>;
  constexpr int kParts = kStageDepth / 16;
  constexpr int kHalf = (G::kRowBlocks + 1) / 2;
  auto& shared = SharedMemory<typename G::Shared>();
  const TileList<G> tiles(args);
  Loader<G> loader(args, tiles);
  if (loader.done(tiles)) return;
  for (int stage = 0; stage < G::kStages - 1; ++stage) {
    loader.template Copy<0, 1>(args, tiles, shared.stages[stage]);
    CommitCopies();
    loader.Advance(args, tiles);
  }
  int stage = 0, free_stage = G::kStages - 1;
  WaitForCopies<G::kStages - 2>();
  BlockBarrier<G::kThreads>();
  Operands<G> operands[2];
  operands[0].Load(shared.stages[0], 0);

  Place place;
  for (int tile = tiles.Find(args.groups, static_cast<int>(blockIdx.x), place); tile < tiles.size;
       tile = tiles.Find(args.groups, tile + static_cast<int>(gridDim.x), place)) {
    const bool many_rows = place.num_rows > G::kRows / 2;
    typename G::Accumulators sums = {};
    for (int k = 0; k < args.depth; k += kStageDepth) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (part == kParts - 1) {
          // The last operands of this stage are read: after the barrier it may be overwritten, and
          // what other threads copied to the next one may be read.
          WaitForCopies<G::kStages - 2>();
          BlockBarrier<G::kThreads>();
          free_stage = stage;
          stage = stage + 1 < G::kStages ? stage + 1 : 0;
        }
        operands[(part + 1) % 2].Load(shared.stages[stage], (part + 1) % kParts);
        operands[part % 2].template Multiply<0, kHalf>(sums);
        if (many_rows) operands[part % 2].template Multiply<kHalf, G::kRowBlocks>(sums);
        if (part == 0) loader.template Copy<0, 3>(args, tiles, shared.stages[free_stage]);
        if (part == 1) loader.template Copy<1, 3>(args, tiles, shared.stages[free_stage]);
        if (part == 2) {
          loader.template Copy<2, 3>(args, tiles, shared.stages[free_stage]);
          CommitCopies();
          loader.Advance(args, tiles);
        }
      }
    }
    StoreTile<G, Epilogue>(args, place, sums);
  }
}

template <int kIndex, typename Epilogue>
void LaunchGemm(const GemmArgs& args, int num_blocks, cudaStream_t stream) {
  using G = Geometry<kIndex>;
  const Grid grid = {dim3(num_blocks), dim3(G::kThreads), sizeof(typename G::Shared)};
  Launch(GemmKernel<kIndex, Epilogue>, grid, stream, args);
}

/// Launches the kernel of a cut.
template <typename Epilogue>
void EnqueueGemm(const GemmArgs& args, const Cut& cut, cudaStream_t stream) {
  const int64_t max_tiles = MaxTiles(args.groups, args.num_outputs, kTiles[cut.tile]);
  const int num_blocks = static_cast<int>(std::min<int64_t>(max_tiles, cut.max_blocks));
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    ((cut.tile == kIndex ? LaunchGemm<kIndex, Epilogue>(args, num_blocks, stream) : void()), ...);
  }(std::make_integer_sequence<int, kNumTiles>());
}

}  // namespace shoal::cuda
