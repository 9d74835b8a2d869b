// Attention of many queries: one block for 64 query rows of a sequence and kv head, 16 rows for
// each warp, over all keys that they see, 64 at a time.
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace shoal::cuda::attention {

inline constexpr int kBlockRows = kWarps * kRows;

struct LongArgs {
  AttentionArgs attention = {};
  BFloat16* out = nullptr;
  float scale = 0;          // of the exponents of 2
  int short_query_len = 0;  // AttendSplits takes sequences with no more tokens
};

template <int kDim>
struct LongShared {
  static constexpr int kStages = kDim > 128 ? 1 : 2;
  alignas(128) BFloat16 keys[kStages][kTileKeys * kDim];
  alignas(128) BFloat16 values[kStages][kTileKeys * kColumns<kDim>];
  union {
    float4 totals[kWarps][kColumns<kDim> / 8][kWarpSize];  // of each lane, as fragments
    BFloat16 results[kWarps][kRows * kColumns<kDim>];
  };
  WarpValues warp_values;
  int sequence;
  int row_tile;
};

/// Finds the block's sequence and 64 rows, those with most keys first in each sequence. False if
/// there is no work left for it.
template <int kDim>
__device__ __forceinline__ bool Locate(const LongArgs& args, int number, LongShared<kDim>& shared) {
  const AttentionArgs& attention = args.attention;
  const int group = attention.num_heads / attention.num_kv_heads;
  int before = 0;
  for (int first = 0; first < attention.num_sequences && before <= number; first += kThreads) {
    const int sequence = first + threadIdx.x;
    int num_tiles = 0;
    if (sequence < attention.num_sequences) {
      const int num_tokens = attention.cu_seqlens[sequence + 1] - attention.cu_seqlens[sequence];
      if (num_tokens > args.short_query_len) {
        num_tiles = (num_tokens * group + kBlockRows - 1) / kBlockRows;
      }
    }
    uint64_t total = 0;
    const int begin =
        before + static_cast<int>(BlockSumBefore(num_tiles, shared.warp_values, total));
    if (begin <= number && number < begin + num_tiles) {
      shared.sequence = sequence;
      shared.row_tile = begin + num_tiles - 1 - number;
    }
    before += static_cast<int>(total);
  }
  __syncthreads();
  return before > number;
}

/// The queries of the block's sequence and kv head.
template <int kDim>
__device__ __forceinline__ QueryRows Queries(const LongArgs& args, const LongShared<kDim>& shared) {
  const int32_t* starts = args.attention.cu_seqlens + shared.sequence;
  return QueryRows::Of(args.attention, starts[0], starts[1] - starts[0],
                       blockIdx.x % args.attention.num_kv_heads);
}

/// The sums of a warp's 16 rows: of the split under way in registers, of those before it in shared
/// memory. A lane has rows lane / 4 and lane / 4 + 8.
template <int kDim>
struct WarpSums {
  RowSum split_rows[2];
  RowSum total_rows[2];
  float split[kColumns<kDim> / 8][4];
  float4 (*totals)[kWarpSize];

  __device__ __forceinline__ explicit WarpSums(float4 (*totals)[kWarpSize]) : totals(totals) {
#pragma unroll
    for (int j = 0; j < kColumns<kDim> / 8; ++j) {
      totals[j][LaneIndex()] = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) split[j][i] = 0;
    }
  }

  /// Takes a tile in.
  __device__ __forceinline__ void AddTile(const TileWeights& tile, const BFloat16* values,
                                          float scale) {
    const Shares shares[2] = {Fold(tile.rows[0], scale, split_rows[0]),
                              Fold(tile.rows[1], scale, split_rows[1])};
    float sums[kColumns<kDim> / 8][4] = {};
#pragma unroll
    for (int i = 0; i < kTileKeys / kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns<kDim> / 8; j += 2) {
        AddValues<kColumns<kDim>>(tile.weights[i], values + i * kRows * kColumns<kDim>, 8 * j,
                                  sums[j], sums[j + 1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns<kDim> / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) split[j][i] = Fold(sums[j][i], shares[i / 2], split[j][i]);
    }
  }

  /// Takes the split into the total and begins a new one.
  __device__ __forceinline__ void EndSplit(float scale) {
    const Shares shares[2] = {Fold(split_rows[0], scale, total_rows[0]),
                              Fold(split_rows[1], scale, total_rows[1])};
    split_rows[0] = {};
    split_rows[1] = {};
#pragma unroll
    for (int j = 0; j < kColumns<kDim> / 8; ++j) {
      const float4 total = totals[j][LaneIndex()];
      totals[j][LaneIndex()] =
          make_float4(Fold(split[j][0], shares[0], total.x), Fold(split[j][1], shares[0], total.y),
                      Fold(split[j][2], shares[1], total.z), Fold(split[j][3], shares[1], total.w));
#pragma unroll
      for (int i = 0; i < 4; ++i) split[j][i] = 0;
    }
  }
};

/// Writes the results of a warp's rows. They change places in shared memory, so that 16 bytes are
/// written at a time.
template <int kDim>
__device__ __forceinline__ void StoreRows(const LongArgs& args, const WarpSums<kDim>& sums,
                                          LongShared<kDim>& shared) {
  constexpr int kWidth = kColumns<kDim>;
  BFloat16* results = shared.results[WarpIndex()];
  uint32_t pairs[kWidth / 8][2];
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
    const float4 total = sums.totals[j][LaneIndex()];
    pairs[j][0] = PackBFloat16(Normalize(total.x, sums.total_rows[0]),
                               Normalize(total.y, sums.total_rows[0]));
    pairs[j][1] = PackBFloat16(Normalize(total.z, sums.total_rows[1]),
                               Normalize(total.w, sums.total_rows[1]));
  }
  __syncthreads();  // all totals have been read
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int to = TileOffset<kWidth>(LaneIndex() / 4 + 8 * half, 8 * j) + 2 * (LaneIndex() % 4);
      *reinterpret_cast<uint32_t*>(results + to) = pairs[j][half];
    }
  }
  __syncwarp();
  const int head_dim = args.attention.head_dim, num_heads = args.attention.num_heads;
  const int first_column =
      blockIdx.x / args.attention.num_kv_heads % NumParts<kDim>(args.attention) * kWidth;
  const QueryRows queries = Queries(args, shared);
  for (int i = LaneIndex(); i < kRows * kWidth / 8; i += kWarpSize) {
    const int row = i / (kWidth / 8), column = i % (kWidth / 8) * 8;
    const int query_row = shared.row_tile * kBlockRows + WarpIndex() * kRows + row;
    if (query_row >= queries.num_rows || first_column + column >= head_dim) continue;
    const int64_t head =
        static_cast<int64_t>(queries.Token(query_row)) * num_heads + queries.Head(query_row);
    *reinterpret_cast<uint4*>(args.out + head * head_dim + first_column + column) =
        *reinterpret_cast<const uint4*>(results + TileOffset<kWidth>(row, column));
  }
}

/// Copies of keys and values alternate, 2 kStages - 1 groups ahead of their use: at each use one
/// buffer is being read, the others are being filled.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2) AttendLong(const LongArgs args) {
  constexpr int kStages = LongShared<kDim>::kStages;
  constexpr int kPending = 2 * kStages - 2;
  const AttentionArgs& attention = args.attention;
  auto& shared = SharedMemory<LongShared<kDim>>();
  const int num_parts = NumParts<kDim>(attention);
  if (!Locate(args, blockIdx.x / attention.num_kv_heads / num_parts, shared)) return;

  const QueryRows queries = Queries(args, shared);
  const int block_row = shared.row_tile * kBlockRows;
  const int first_row = block_row + WarpIndex() * kRows;
  // The last positions that the first and the last row of the warp see, and any row of the block.
  const int warp_rows = min(queries.num_rows - first_row, kRows);
  const int lowest = queries.LastKey(attention, first_row);
  const int highest = warp_rows <= 0 ? -1 : queries.LastKey(attention, first_row + warp_rows - 1);
  const int end_row = min(queries.num_rows, block_row + kBlockRows);
  CachedHead head =
      CachedHead::Of<kDim>(attention, shared.sequence, blockIdx.x % attention.num_kv_heads,
                           blockIdx.x / attention.num_kv_heads % num_parts);
  head.end = queries.LastKey(attention, end_row - 1) + 1;
  const int num_tiles = (head.end + kTileKeys - 1) / kTileKeys;

  // `source` is the row of one key of the next tile.
  const int lane_key = TileRow<kWarps>(LaneIndex() % kRows);
  uint32_t source = head.Row(lane_key);
  const auto copy_keys = [&](int tile) {
    if (tile < num_tiles) {
      CopyRows<kDim, kWarps>(head.keys, source, shared.keys[tile % kStages]);
    }
    CommitCopies();
  };
  const auto copy_values = [&](int tile) {
    if (tile < num_tiles) {
      CopyRows<kColumns<kDim>, kWarps>(head.values, source, shared.values[tile % kStages]);
    }
    CommitCopies();
    source = head.Row((tile + 1) * kTileKeys + lane_key);
  };
#pragma unroll
  for (int tile = 0; tile < kStages; ++tile) {
    copy_keys(tile);
    if (tile + 1 < kStages) copy_values(tile);
  }

  uint32_t operands[kDim / 16][4];
  LoadQueries<kDim>(attention, queries, first_row, operands);
  WarpSums<kDim> sums(shared.totals[WarpIndex()]);
  for (int tile = 0; tile < num_tiles; ++tile) {
    const bool sees = tile * kTileKeys <= highest;
    TileWeights weights;
    WaitForCopies<kPending>();
    __syncthreads();
    copy_values(tile + kStages - 1);
    if (sees) {
      TileScores scores = {};
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
        for (int i = 0; i < kTileKeys / kRows; ++i) {
          AddScores<kDim>(operands[step], shared.keys[tile % kStages] + i * kRows * kDim, step,
                          scores[i]);
        }
      }
      if ((tile + 1) * kTileKeys > lowest + 1) {
        const int row = first_row + LaneIndex() / 4;
        Mask(tile * kTileKeys,
             {queries.LastKey(attention, row), queries.LastKey(attention, row + 8)}, scores);
      }
      Softmax(args.scale, scores, weights);
    }
    WaitForCopies<kPending>();
    __syncthreads();
    copy_keys(tile + kStages);
    if (sees) {
      if (tile > 0 && tile % kTilesPerSplit == 0) sums.EndSplit(args.scale);
      sums.AddTile(weights, shared.values[tile % kStages], args.scale);
    }
  }
  sums.EndSplit(args.scale);
  StoreRows(args, sums, shared);
}

}  // namespace shoal::cuda::attention
