// Attention of few queries over many keys: one block for each split of 256 positions of a sequence
// and kv head, one warp for each 64 of them. The block that finishes last adds up the splits.
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace shoal::cuda::attention {

/// Sequences of one launch: their plan lies in shared memory.
inline constexpr int kMaxSequences = 512;

/// Sums over single splits in global memory. The row of (unit, token, head), a unit being one split
/// of one sequence, is (unit * short_query_len + token) * num_heads + head.
struct PartialSums {
  float* values = nullptr;  // [rows, head_dim] weighted values
  RowSum* rows = nullptr;   // [rows, parts]
  int* counters = nullptr;  // [sequences, row tiles, num_kv_heads, parts] splits that are done
};

struct SplitArgs {
  AttentionArgs attention = {};
  BFloat16* out = nullptr;
  float scale = 0;          // of the exponents of 2
  int short_query_len = 0;  // AttendLong takes sequences with more tokens
  int first_sequence = 0;
  int num_sequences = 0;  // from there, at most kMaxSequences
  PartialSums partial = {};

  /// Of a sequence with short_query_len tokens.
  __host__ __device__ int RowTiles() const {
    const int group = attention.num_heads / attention.num_kv_heads;
    return (short_query_len * group + kRows - 1) / kRows;
  }
};

/// What the plan knows of a sequence. One that has too many tokens, or none, has no context.
struct PlannedSequence {
  int first_token = 0;
  int num_tokens = 0;
  int context_len = 0;
  int first_unit = 0;

  __device__ __forceinline__ int NumSplits() const {
    return (context_len + kSplitKeys - 1) / kSplitKeys;
  }
};

/// One block's work: 16 query rows over one split.
struct SplitItem {
  PlannedSequence sequence = {};
  QueryRows queries = {};
  int index = 0;  // of the sequence in the launch
  int split = 0;
  int kv_head = 0;
  int part = 0;
  int row_tile = 0;

  __device__ __forceinline__ int FirstRow() const { return row_tile * kRows; }
  __device__ __forceinline__ int NumRows() const {
    return min(queries.num_rows - FirstRow(), kRows);
  }
  __device__ __forceinline__ int NumTiles() const {
    const int num_keys = min(sequence.context_len - split * kSplitKeys, kSplitKeys);
    return (num_keys + kTileKeys - 1) / kTileKeys;
  }
  __device__ __forceinline__ int Unit() const { return sequence.first_unit + split; }
};

/// One warp's memory: first keys and values, 16 positions at a time, then its sums.
template <int kDim>
union WarpMemory {
  static constexpr int kStages = kDim > 128 ? 1 : 4;
  alignas(128) BFloat16 stages[kStages][kRows * kDim];
  float sums[kRows][kColumns<kDim> + 8];  // 8 more: rows of a fragment lie in different banks
};

template <int kDim>
struct SplitShared {
  WarpMemory<kDim> warps[kWarps];
  RowSum rows[kTilesPerSplit][kRows];
  PlannedSequence sequences[kMaxSequences];
  SplitItem item;
  WarpValues warp_values;
  bool is_last;
};
static_assert(kTilesPerSplit == kWarps);

/// Writes the plan; returns the number of units.
template <int kDim>
__device__ __forceinline__ int Plan(const SplitArgs& args, SplitShared<kDim>& shared) {
  int num_units = 0;
  for (int first = 0; first < args.num_sequences; first += kThreads) {
    const int index = first + threadIdx.x;
    PlannedSequence sequence;
    if (index < args.num_sequences) {
      const int32_t* starts = args.attention.cu_seqlens + args.first_sequence + index;
      sequence.first_token = starts[0];
      sequence.num_tokens = starts[1] - starts[0];
      if (sequence.num_tokens > 0 && sequence.num_tokens <= args.short_query_len) {
        sequence.context_len = args.attention.positions[starts[1] - 1] + 1;
      }
    }
    uint64_t total = 0;
    const uint64_t before = BlockSumBefore(sequence.NumSplits(), shared.warp_values, total);
    sequence.first_unit = num_units + static_cast<int>(before);
    if (index < args.num_sequences) shared.sequences[index] = sequence;
    num_units += static_cast<int>(total);
  }
  __syncthreads();
  return num_units;
}

/// Items of one unit lie side by side: kv heads do so in the cache, too.
template <int kDim>
__device__ __forceinline__ SplitItem Locate(const SplitArgs& args, const SplitShared<kDim>& shared,
                                            int number) {
  SplitItem item;
  item.part = number % NumParts<kDim>(args.attention);
  number /= NumParts<kDim>(args.attention);
  item.kv_head = number % args.attention.num_kv_heads;
  number /= args.attention.num_kv_heads;
  item.row_tile = number % args.RowTiles();
  const int unit = number / args.RowTiles();
  int end = args.num_sequences;  // the unit belongs to the last sequence that begins before it
  while (end - item.index > 1) {
    const int middle = (item.index + end) / 2;
    (shared.sequences[middle].first_unit <= unit ? item.index : end) = middle;
  }
  item.sequence = shared.sequences[item.index];
  item.split = unit - item.sequence.first_unit;
  item.queries = QueryRows::Of(args.attention, item.sequence.first_token, item.sequence.num_tokens,
                               item.kv_head);
  return item;
}

/// One warp sums up its tile and leaves sums and row sums in shared memory. 16 keys or 16 values
/// make one group of copies; as many as there are stages are under way.
template <int kDim>
__device__ __forceinline__ void AttendTile(const SplitArgs& args, const SplitItem& item,
                                           WarpMemory<kDim>& memory, RowSum (&rows)[kRows]) {
  constexpr int kStages = WarpMemory<kDim>::kStages;
  constexpr int kSlices = kTileKeys / kRows;
  const int64_t sequence = args.first_sequence + item.index;
  CachedHead head = CachedHead::Of<kDim>(args.attention, sequence, item.kv_head, item.part);
  head.end = item.sequence.context_len;
  const int first_key = item.split * kSplitKeys + WarpIndex() * kTileKeys;

  uint32_t sources[kSlices];
#pragma unroll
  for (int i = 0; i < kSlices; ++i)
    sources[i] = head.Row(first_key + kRows * i + LaneIndex() % kRows);
  const auto copy = [&](int number) {  // first the keys of all slices, then the values
    BFloat16* stage = memory.stages[number % kStages];
    if (number < kSlices) {
      CopyRows<kDim>(head.keys, sources[number], stage);
    } else if (number < 2 * kSlices) {
      CopyRows<kColumns<kDim>>(head.values, sources[number - kSlices], stage);
    }
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kStages; ++i) copy(i);

  uint32_t queries[kDim / 16][4];
  LoadQueries<kDim>(args.attention, item.queries, item.FirstRow(), queries);
  const int lane_row = item.FirstRow() + LaneIndex() / 4;
  const int last_keys[2] = {item.queries.LastKey(args.attention, lane_row),
                            item.queries.LastKey(args.attention, lane_row + 8)};
  TileScores scores = {};
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    WaitForCopies<kStages - 1>();
    __syncwarp();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      AddScores<kDim>(queries[step], memory.stages[i % kStages], step, scores[i]);
    }
    __syncwarp();
    copy(i + kStages);
  }
  TileWeights tile;
  Mask(first_key, last_keys, scores);
  Softmax(args.scale, scores, tile);

  float sums[kColumns<kDim> / 8][4] = {};
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    WaitForCopies<kStages - 1>();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kColumns<kDim> / 8; j += 2) {
      AddValues<kColumns<kDim>>(tile.weights[i], memory.stages[(i + kSlices) % kStages], 8 * j,
                                sums[j], sums[j + 1]);
    }
    __syncwarp();
    copy(i + kSlices + kStages);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = LaneIndex() / 4 + 8 * half;
    if (row >= item.NumRows()) continue;
    if (LaneIndex() % 4 == 0) rows[row] = tile.rows[half];
#pragma unroll
    for (int j = 0; j < kColumns<kDim> / 8; ++j) {
      *reinterpret_cast<float2*>(&memory.sums[row][8 * j + 2 * (LaneIndex() % 4)]) =
          make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
    }
  }
}

/// Calls each(row, column), of those that there are, spread over the block's threads.
template <int kDim, typename Each>
__device__ __forceinline__ void ForEachSum(const SplitArgs& args, const SplitItem& item,
                                           const Each& each) {
  const int columns = args.attention.head_dim - item.part * kColumns<kDim>;
  for (int i = threadIdx.x; i < item.NumRows() * kColumns<kDim>; i += kThreads) {
    if (i % kColumns<kDim> < columns) each(i / kColumns<kDim>, i % kColumns<kDim>);
  }
}

/// Where the sums of a row of the item over one split lie in PartialSums.
__device__ __forceinline__ int64_t PartialRow(const SplitArgs& args, const SplitItem& item,
                                              int unit, int row) {
  const int query_row = item.FirstRow() + row;
  const int64_t token =
      static_cast<int64_t>(unit) * args.short_query_len + query_row / item.queries.group;
  return token * args.attention.num_heads + item.queries.Head(query_row);
}

template <int kDim>
__device__ __forceinline__ void StoreResult(const SplitArgs& args, const SplitItem& item, int row,
                                            int column, float value) {
  const int query_row = item.FirstRow() + row;
  const int64_t head =
      static_cast<int64_t>(item.queries.Token(query_row)) * args.attention.num_heads +
      item.queries.Head(query_row);
  const auto bits = static_cast<uint16_t>(PackBFloat16(value, 0));
  args.out[head * args.attention.head_dim + item.part * kColumns<kDim> + column].bits = bits;
}

/// Adds up the tiles of the item's split. The result, or the split's sums if there are more splits.
template <int kDim>
__device__ __forceinline__ void FoldTiles(const SplitArgs& args, const SplitItem& item,
                                          const SplitShared<kDim>& shared) {
  const bool is_only = item.sequence.NumSplits() == 1;
  const int num_tiles = item.NumTiles();
  ForEachSum<kDim>(args, item, [&](int row, int column) {
    RowSum split;
    float sum = 0;
    for (int tile = 0; tile < num_tiles; ++tile) {
      const Shares shares = Fold(shared.rows[tile][row], args.scale, split);
      sum = Fold(shared.warps[tile].sums[row][column], shares, sum);
    }
    if (is_only) {
      RowSum total;
      const float value = Fold(sum, Fold(split, args.scale, total), 0);
      StoreResult<kDim>(args, item, row, column, Normalize(value, total));
    } else {
      const int64_t to = PartialRow(args, item, item.Unit(), row);
      const int first_column = item.part * kColumns<kDim>;
      args.partial.values[to * args.attention.head_dim + first_column + column] = sum;
      if (column == 0) args.partial.rows[to * NumParts<kDim>(args.attention) + item.part] = split;
    }
  });
}

/// Counts the item's split as done. True in all threads of the block that counts last, which then
/// sees what the others wrote; the counter is then 0 again.
template <int kDim>
__device__ __forceinline__ bool FinishSplit(const SplitArgs& args, const SplitItem& item,
                                            SplitShared<kDim>& shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const int tile = item.index * args.RowTiles() + item.row_tile;
    const int head = tile * args.attention.num_kv_heads + item.kv_head;
    int* counter = args.partial.counters + head * NumParts<kDim>(args.attention) + item.part;
    shared.is_last = atomicAdd(counter, 1) == item.sequence.NumSplits() - 1;
    if (shared.is_last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return shared.is_last;
}

/// Adds up the splits.
template <int kDim>
__device__ __forceinline__ void FoldSplits(const SplitArgs& args, const SplitItem& item) {
  const int num_splits = item.sequence.NumSplits(), head_dim = args.attention.head_dim;
  const int num_parts = NumParts<kDim>(args.attention);
  const int64_t rows_per_split =
      static_cast<int64_t>(args.short_query_len) * args.attention.num_heads;
  ForEachSum<kDim>(args, item, [&](int row, int column) {
    const int64_t first = PartialRow(args, item, item.sequence.first_unit, row);
    const RowSum* split_row = args.partial.rows + first * num_parts + item.part;
    const float* value =
        args.partial.values + first * head_dim + item.part * kColumns<kDim> + column;
    RowSum total;
    float sum = 0;
#pragma unroll 4
    for (int split = 0; split < num_splits; ++split) {
      const Shares shares = Fold(*split_row, args.scale, total);
      sum = Fold(*value, shares, sum);
      split_row += rows_per_split * num_parts;
      value += rows_per_split * head_dim;
    }
    StoreResult<kDim>(args, item, row, column, Normalize(sum, total));
  });
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim > 128 ? 2 : 3) AttendSplits(const SplitArgs args) {
  auto& shared = SharedMemory<SplitShared<kDim>>();
  const int num_items = Plan(args, shared) * args.RowTiles() * args.attention.num_kv_heads *
                        NumParts<kDim>(args.attention);
  const SplitItem& item = shared.item;
  for (int number = blockIdx.x; number < num_items; number += gridDim.x) {
    if (threadIdx.x == 0) shared.item = Locate(args, shared, number);
    __syncthreads();
    if (item.NumRows() > 0) {
      if (WarpIndex() < item.NumTiles()) {
        AttendTile<kDim>(args, item, shared.warps[WarpIndex()], shared.rows[WarpIndex()]);
      }
      __syncthreads();
      FoldTiles(args, item, shared);
      if (item.sequence.NumSplits() > 1 && FinishSplit(args, item, shared)) {
        FoldSplits<kDim>(args, item);
      }
    }
    __syncthreads();  // shared memory is free again
  }
}

}  // namespace shoal::cuda::attention
