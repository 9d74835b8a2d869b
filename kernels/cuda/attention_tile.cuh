// The arithmetic of attention over 64 keys, and how the sums of several such tiles are put
// together. Every kernel of attention does exactly this, so the bits of a row are the same however
// its keys and its neighbours are spread over threads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda::attention {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / kWarpSize;
inline constexpr int kRows = 16;  // of one mma: query rows of a warp; keys that are copied together
inline constexpr int kTileKeys = 64;
inline constexpr int kTilesPerSplit = 4;
inline constexpr int kSplitKeys = kTilesPerSplit * kTileKeys;
inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

/// A kernel for heads of up to kDim elements sums up so many columns of the values. Where that is
/// not all, other blocks take the other columns, with the same scores: registers are few.
template <int kDim>
inline constexpr int kColumns = kDim <= 128 ? kDim : 64;

template <int kDim>
__host__ __device__ __forceinline__ int NumParts(const AttentionArgs& args) {
  return kDim == kColumns<kDim> ? 1 : (args.head_dim + kColumns<kDim> - 1) / kColumns<kDim>;
}

/// Rows in global memory, each `stride` elements after the last; of each the first `width`.
struct RowSource {
  const BFloat16* base = nullptr;
  uint32_t stride = 0;
  int width = 0;
};
inline constexpr uint32_t kNoRow = 0xffffffffu;

/// The element where 8 elements of a row begin, in a tile of kWidth columns in shared memory.
/// ldmatrix reads the same 8 columns of 8 rows: they must lie in different banks.
template <int kWidth>
__device__ __forceinline__ int TileOffset(int row, int column) {
  constexpr int kChunks = kWidth / 8;
  constexpr int kRowsPerLine = kChunks < 8 ? 8 / kChunks : 1;  // of 128 bytes: all banks
  const int turn = row / kRowsPerLine % (kChunks < 8 ? kChunks : 8);
  return row * kWidth + (column / 8 ^ turn) * 8;
}

/// The row of a tile that a warp copies for its lanes i and i + 16. Warps that share a tile take
/// every kSharers-th row: those that a lane copies then differ little in where they begin.
template <int kSharers>
__device__ __forceinline__ int TileRow(int i) {
  return kSharers == 1 ? i : i * kSharers + WarpIndex();
}

/// Starts the copy of 16 rows by one warp. `row` is that of TileRow(lane % 16), or kNoRow: zeros.
/// 32 bits suffice: 2^32 rows of 16 elements are 128 GiB.
template <int kWidth, int kSharers = 1>
__device__ __forceinline__ void CopyRows(const RowSource& source, uint32_t row, BFloat16* tile) {
  constexpr int kLanesPerRow = kWidth / 8;
  constexpr int kRowsAtOnce = kWarpSize / kLanesPerRow;
  const int column = LaneIndex() % kLanesPerRow * 8;
  const BFloat16* base = source.base + (column < source.width ? column : 0);
#pragma unroll
  for (int first = 0; first < kRows; first += kRowsAtOnce) {
    const int i = first + LaneIndex() / kLanesPerRow;
    const uint32_t from = __shfl_sync(kAllLanes, row, i);
    const bool valid = from != kNoRow && column < source.width;
    const uint64_t offset = static_cast<uint64_t>(valid ? from : 0) * source.stride;
    CopyAsync16(tile + TileOffset<kWidth>(TileRow<kSharers>(i), column), base + offset, valid);
  }
}

/// The keys and values of one sequence and one kv head, up to position `end`.
struct CachedHead {
  RowSource keys;
  RowSource values;
  const int32_t* blocks = nullptr;
  int block_size = 0;
  uint32_t head = 0;
  uint32_t heads_per_block = 0;  // of keys and values
  int end = 0;

  /// `part`: which columns of the values.
  template <int kDim>
  static __device__ __forceinline__ CachedHead Of(const AttentionArgs& args, int64_t sequence,
                                                  int head, int part) {
    const int64_t values = static_cast<int64_t>(args.num_kv_heads) * args.block_size;
    const auto stride = static_cast<uint32_t>(args.head_dim);
    const int column = part * kColumns<kDim>;
    const int width = min(args.head_dim - column, kColumns<kDim>);
    return {.keys = {args.kv, stride, args.head_dim},
            .values = {args.kv + values * args.head_dim + column, stride, width},
            .blocks = args.block_tables + sequence * args.max_blocks,
            .block_size = args.block_size,
            .head = static_cast<uint32_t>(head),
            .heads_per_block = 2u * args.num_kv_heads};
  }

  /// The row of a position in both sources.
  __device__ __forceinline__ uint32_t Row(int position) const {
    if (position >= end) return kNoRow;
    const uint32_t block = __ldg(blocks + position / block_size);
    return (block * heads_per_block + head) * block_size + position % block_size;
  }
};

/// The queries of a sequence that share a kv head: row i is head i % group of token i / group.
struct QueryRows {
  int first_token = 0;
  int num_rows = 0;
  int group = 0;
  int first_head = 0;

  static __device__ __forceinline__ QueryRows Of(const AttentionArgs& args, int first_token,
                                                 int num_tokens, int kv_head) {
    const int group = args.num_heads / args.num_kv_heads;
    return {first_token, num_tokens * group, group, kv_head * group};
  }

  __device__ __forceinline__ int Token(int row) const { return first_token + row / group; }
  __device__ __forceinline__ int Head(int row) const { return first_head + row % group; }
  /// The row in qkv as rows of head_dim elements.
  __device__ __forceinline__ uint32_t Source(const AttentionArgs& args, int row) const {
    if (row >= num_rows) return kNoRow;
    const uint32_t heads = args.num_heads + 2u * args.num_kv_heads;
    return static_cast<uint32_t>(Token(row)) * heads + Head(row);
  }
  /// The last position that the row sees; -1 if there is no such row.
  __device__ __forceinline__ int LastKey(const AttentionArgs& args, int row) const {
    return row < num_rows ? args.positions[Token(row)] : -1;
  }
};

/// The 16 rows from `first_row` as operands of mma, straight from global memory.
template <int kDim>
__device__ __forceinline__ void LoadQueries(const AttentionArgs& args, const QueryRows& queries,
                                            int first_row, uint32_t (&out)[kDim / 16][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t source = queries.Source(args, first_row + LaneIndex() / 4 + 8 * half);
    const int64_t offset = source == kNoRow ? 0 : static_cast<int64_t>(source) * args.head_dim;
    const auto* pairs = reinterpret_cast<const uint32_t*>(args.qkv + offset);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const int column = 8 * i + 2 * (LaneIndex() % 4);
      const bool valid = source != kNoRow && column < args.head_dim;
      out[i / 2][half + i % 2 * 2] = valid ? pairs[column / 2] : 0;
    }
  }
}

/// Of one row over some keys: its highest score, and the sum of the weights 2^(scale (score -
/// highest)).
struct alignas(8) RowSum {
  float highest = kMasked;
  float sum = 0;
};

/// What the weighted values so far, and those of the keys that come next, are multiplied with.
struct Shares {
  float previous = 0;
  float next = 0;
};

/// Takes the next keys into `total`. Keys that the row does not see change nothing.
__device__ __forceinline__ Shares Fold(const RowSum& next, float scale, RowSum& total) {
  const float highest = fmaxf(total.highest, next.highest);
  const float base = highest == kMasked ? 0 : highest;
  const Shares shares = {Exp2((total.highest - base) * scale), Exp2((next.highest - base) * scale)};
  total = {highest, fmaf(next.sum, shares.next, total.sum * shares.previous)};
  return shares;
}

__device__ __forceinline__ float Fold(float next, const Shares& shares, float total) {
  return fmaf(next, shares.next, total * shares.previous);
}

/// The result of a row; 0 is added because a total that underflowed may have either sign.
__device__ __forceinline__ float Normalize(float total, const RowSum& row) {
  return fmaf(total, 1.0f / row.sum, 0.0f);
}

/// The weights of a tile as an operand of mma, and their sums. A lane has rows lane / 4 and
/// lane / 4 + 8.
struct TileWeights {
  uint32_t weights[kTileKeys / kRows][4];
  RowSum rows[2];
};

/// scores[j] += the products with keys 8 j to 8 j + 7 of 16 keys, over columns 16 step to
/// 16 step + 15.
template <int kDim>
__device__ __forceinline__ void AddScores(const uint32_t (&queries)[4], const BFloat16* keys,
                                          int step, float (&scores)[2][4]) {
  const int row = LaneIndex() / 16 * 8 + LaneIndex() % 8,
            column = 16 * step + LaneIndex() / 8 % 2 * 8;
  uint32_t operand[4];
  LoadMatrices(keys + TileOffset<kDim>(row, column), operand);
  MultiplyAdd(scores[0], queries, operand[0], operand[1]);
  MultiplyAdd(scores[1], queries, operand[2], operand[3]);
}

/// sums[j] += the weighted values of 16 keys, columns `column` + 8 j to `column` + 8 j + 7.
template <int kWidth>
__device__ __forceinline__ void AddValues(const uint32_t (&weights)[4], const BFloat16* values,
                                          int column, float (&low)[4], float (&high)[4]) {
  const int row = LaneIndex() % 16;
  uint32_t operand[4];
  LoadMatricesTransposed(values + TileOffset<kWidth>(row, column + LaneIndex() / 16 * 8), operand);
  MultiplyAdd(low, weights, operand[0], operand[1]);
  MultiplyAdd(high, weights, operand[2], operand[3]);
}

/// scores[i][j]: of keys 16 i + 8 j to 16 i + 8 j + 7 of a tile that begins at `first_key`.
using TileScores = float[kTileKeys / kRows][2][4];

/// Masks the keys that come after the last ones that the lane's two rows see.
__device__ __forceinline__ void Mask(int first_key, const int (&last_keys)[2], TileScores& scores) {
#pragma unroll
  for (int i = 0; i < kTileKeys / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = first_key + 8 * i + 2 * (LaneIndex() % 4) + j % 2;
      if (key > last_keys[j / 2]) scores[i / 2][i % 2][j] = kMasked;
    }
  }
}

/// The weights are rounded before they are summed: a mean of equal values is then exact.
__device__ __forceinline__ void Softmax(float scale, TileScores& scores, TileWeights& tile) {
  constexpr int kPairs = kTileKeys / 8;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float highest = kMasked;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float(&pair)[4] = scores[i / 2][i % 2];
      highest = fmaxf(highest, fmaxf(pair[2 * row], pair[2 * row + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
    const float base = highest == kMasked ? 0 : highest * scale;
    tile.rows[row].highest = highest;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      float(&pair)[4] = scores[i / 2][i % 2];
      const float low = Exp2(fmaf(pair[2 * row], scale, -base));
      const float high = Exp2(fmaf(pair[2 * row + 1], scale, -base));
      tile.weights[i / 2][i % 2 * 2 + row] = PackBFloat16(low, high);
    }
  }
  constexpr uint32_t kOnes = 0x3f803f80u;
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kTileKeys / kRows; ++i) MultiplyAdd(sums, tile.weights[i], kOnes, kOnes);
  tile.rows[0].sum = sums[0];
  tile.rows[1].sum = sums[2];
}

}  // namespace shoal::cuda::attention
