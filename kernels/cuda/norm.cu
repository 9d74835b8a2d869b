#include "kernels/cuda/norm.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda {
namespace {

constexpr unsigned int kAllLanes = 0xffffffff;
constexpr int kWarpSize = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kVector = 8;  // elements of one access of 16 bytes
constexpr int kPartSize =
    kThreads * kVector;       // elements of a row of which each thread has a vector
constexpr int kMaxParts = 8;  // of a row

/// The rows of one block. Each thread has kSlots vectors: of the first row the one of each part,
/// then of the next row. Where a row's elements lie, hence the order in which they are added up,
/// does not depend on the number of rows.
struct Rows {
  int64_t first_token = 0;
  int num_tokens = 0;
  int hidden_size = 0;
  int num_parts = 0;  // of kPartSize elements, of each row; the last may be cut short
};

/// Calls visit(slot, token, column) for each vector of this thread; the token is counted from
/// first_token.
template <int kSlots, typename Visit>
__device__ __forceinline__ void ForEachVector(const Rows& rows, const Visit& visit) {
  int token = 0, part = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int column = part * kPartSize + static_cast<int>(threadIdx.x) * kVector;
    if (token < rows.num_tokens && column < rows.hidden_size) visit(slot, token, column);
    if (++part == rows.num_parts) {
      part = 0;
      ++token;
    }
  }
}

__device__ __forceinline__ void Unpack(const uint4& packed, float (&values)[kVector]) {
  const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(pairs[i] << 16);
    values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ uint4 Pack(const float (&values)[kVector]) {
  return make_uint4(PackBFloat16(values[0], values[1]), PackBFloat16(values[2], values[3]),
                    PackBFloat16(values[4], values[5]), PackBFloat16(values[6], values[7]));
}

__device__ __forceinline__ uint4 LoadVector(const BFloat16* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}

__device__ __forceinline__ void StoreVector(const uint4& values, BFloat16* to) {
  *reinterpret_cast<uint4*>(to) = values;
}

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// Shared memory of NormRows.
template <int kSlots>
struct NormShared {
  float squares[kSlots][kWarps];  // sums over a warp's vectors
  float scales[kSlots];           // by token
};

/// What each row is to be multiplied with, by token, in shared.scales: 1 / root mean square.
/// values: this thread's vectors. Squares are added up within a vector, over the lanes of a warp,
/// the warps, the parts of the row.
template <int kSlots>
__device__ __forceinline__ void FindScales(const NormArgs& args, const Rows& rows,
                                           const uint4 (&values)[kSlots],
                                           NormShared<kSlots>& shared) {
  float squares[kSlots] = {};
  ForEachVector<kSlots>(rows, [&](int slot, int, int) {
    float x[kVector];
    Unpack(values[slot], x);
#pragma unroll
    for (float element : x) squares[slot] = fmaf(element, element, squares[slot]);
  });
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const float sum = WarpSum(squares[slot]);
    if (threadIdx.x % kWarpSize == 0) shared.squares[slot][threadIdx.x / kWarpSize] = sum;
  }
  __syncthreads();
  const int token = static_cast<int>(threadIdx.x);
  if (token < rows.num_tokens) {
    float sum = 0;
    for (int slot = token * rows.num_parts; slot < (token + 1) * rows.num_parts; ++slot) {
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += shared.squares[slot][warp];
    }
    const float mean = sum / static_cast<float>(rows.hidden_size);
    shared.scales[token] = 1.0f / sqrtf(mean + args.epsilon);
  }
  __syncthreads();
}

/// out = RMSNorm of the block's rows, whose vectors of this thread `values` holds; they become
/// those of out. All threads.
template <int kSlots>
__device__ __forceinline__ void NormRows(const NormArgs& args, const Rows& rows,
                                         uint4 (&values)[kSlots], NormShared<kSlots>& shared) {
  FindScales(args, rows, values, shared);
  ForEachVector<kSlots>(rows, [&](int slot, int token, int column) {
    const float scale = shared.scales[token];
    float x[kVector], weight[kVector];
    Unpack(values[slot], x);
#pragma unroll
    for (float& element : x) element *= scale;
    Unpack(Pack(x), x);
    Unpack(LoadVector(args.weight + column), weight);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] *= weight[i];
    values[slot] = Pack(x);
    StoreVector(values[slot], args.out + (rows.first_token + token) * args.hidden_size + column);
  });
}

/// Adds delta, if there is one, to the residual's rows and leaves them in `values`.
template <int kSlots>
__device__ __forceinline__ void AddDelta(const NormArgs& args, const BFloat16* delta,
                                         const Rows& rows, uint4 (&values)[kSlots]) {
  uint4 added[kSlots] = {};
  ForEachVector<kSlots>(rows, [&](int slot, int token, int column) {
    const int64_t at = (rows.first_token + token) * args.hidden_size + column;
    values[slot] = *reinterpret_cast<const uint4*>(args.residual + at);
    if (delta != nullptr) added[slot] = *reinterpret_cast<const uint4*>(delta + at);
  });
  if (delta == nullptr) return;
  ForEachVector<kSlots>(rows, [&](int slot, int token, int column) {
    float x[kVector], y[kVector];
    Unpack(values[slot], x);
    Unpack(added[slot], y);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] += y[i];
    values[slot] = Pack(x);
    StoreVector(values[slot],
                args.residual + (rows.first_token + token) * args.hidden_size + column);
  });
}

__device__ __forceinline__ int NumParts(int64_t hidden_size) {
  return static_cast<int>((hidden_size + kPartSize - 1) / kPartSize);
}

/// The one row of a block that has one.
__device__ __forceinline__ Rows RowOfBlock(const NormArgs& args) {
  return {.first_token = blockIdx.x,
          .num_tokens = 1,
          .hidden_size = static_cast<int>(args.hidden_size),
          .num_parts = NumParts(args.hidden_size)};
}

/// A block for each token; kParts: at least those of a row.
template <int kParts>
__global__ void __launch_bounds__(kThreads) AddRmsNormKernel(NormArgs args, const BFloat16* delta) {
  auto& shared = SharedMemory<NormShared<kParts>>();
  const Rows rows = RowOfBlock(args);
  uint4 values[kParts];
  AddDelta(args, delta, rows, values);
  NormRows(args, rows, values, shared);
}

/// A block for each token; kParts: at least those of a row.
template <int kParts>
__global__ void __launch_bounds__(kThreads)
    CombineKernel(NormArgs args, const BFloat16* expert_rows, RoutingArgs routing) {
  auto& shared = SharedMemory<NormShared<kParts>>();
  const Rows rows = RowOfBlock(args);
  const int64_t token = rows.first_token;
  if (routing.num_real_tokens != nullptr && token >= *routing.num_real_tokens) return;
  const int32_t* ids = routing.expert_ids + token * routing.num_routes;
  const float* weights = routing.weights + token * routing.num_routes;
  float sums[kParts][kVector] = {};
  // So many rows are on their way at once. They are read whether they count or not, which is known
  // later.
  constexpr int kRowsAtOnce = 8 / kParts;
  for (int first = 0; first < routing.num_routes; first += kRowsAtOnce) {
    uint4 loaded[kRowsAtOnce][kParts];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (first + i >= routing.num_routes) continue;
      const BFloat16* row =
          expert_rows + (token * routing.num_routes + first + i) * args.hidden_size;
      ForEachVector<kParts>(
          rows, [&](int slot, int, int column) { loaded[i][slot] = LoadVector(row + column); });
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (first + i >= routing.num_routes || __ldg(ids + first + i) < 0) continue;
      const float weight = __ldg(weights + first + i);
#pragma unroll
      for (int slot = 0; slot < kParts; ++slot) {
        float x[kVector];
        Unpack(loaded[i][slot], x);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sums[slot][j] = fmaf(weight, x[j], sums[slot][j]);
      }
    }
  }
  uint4 values[kParts];
  ForEachVector<kParts>(rows, [&](int slot, int, int column) {
    BFloat16* residual = args.residual + token * args.hidden_size + column;
    float x[kVector];
    Unpack(*reinterpret_cast<const uint4*>(residual), x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] += sums[slot][i];
    values[slot] = Pack(x);
    StoreVector(values[slot], residual);
  });
  NormRows(args, rows, values, shared);
}

/// Experts whose logits are computed at a time: two tiles of 16 rows of the router's weight.
constexpr int kGroup = 32;
constexpr int kMaxExperts = 256;
constexpr int kTokensPerTile = 8;  // columns of a tile of mma
/// Columns of the weight that all warps take at a time, 32 each.
constexpr int kPiece = kWarps * 32;
/// Between rows in shared memory, so that accesses to neighbouring rows use different banks.
constexpr int kRowPadding = 32;

/// Stages of the weight that are on their way, so that every kernel fits into the 99 KiB of shared
/// memory of the smallest of our devices.
constexpr int NumStages(int slots) { return slots <= 2 ? 5 : slots == 4 ? 4 : 3; }

template <int kSlots>
struct RouteShared {
  /// Each thread's own share of the weight: rows lane / 4 + 8 i of a group, 8 columns.
  uint4 stages[NumStages(kSlots)][kGroup / 8][kThreads];
  /// out, row after row, each padded to a multiple of 64 elements and by kRowPadding.
  BFloat16 rows[kSlots * (kPartSize + 64 + kRowPadding)];
  float partial_logits[kWarps][kGroup][kSlots];
  float logits[kSlots][kMaxExperts];
  NormShared<kSlots> norm;
};

static_assert(sizeof(RouteShared<1>) <= 99 << 10 && sizeof(RouteShared<2>) <= 99 << 10 &&
              sizeof(RouteShared<4>) <= 99 << 10 && sizeof(RouteShared<8>) <= 99 << 10);

/// How RouteKernel shares out the work.
struct RouteShape {
  int tokens_per_block = 0;
};

/// The weight of the router on its way to shared memory, stage after stage: the pieces of the first
/// group of experts, then those of the next. A thread reads only what it has copied itself.
template <int kSlots>
class WeightStream {
 public:
  static constexpr int kStages = NumStages(kSlots);

  __device__ __forceinline__ WeightStream(const RouterArgs& router, int hidden_size,
                                          RouteShared<kSlots>& shared)
      : router_(router), hidden_size_(hidden_size), shared_(shared) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    row_ = lane / 4;
    column_ = static_cast<int>(threadIdx.x) / kWarpSize * 32 + lane % 4 * kVector;
    for (int stage = 0; stage < kStages; ++stage) Start();
  }

  /// The next stage: rows lane / 4 + 8 i.
  __device__ __forceinline__ void Next(uint4 (&weight)[kGroup / 8]) {
    WaitForCopies<kStages - 1>();
#pragma unroll
    for (int i = 0; i < kGroup / 8; ++i) weight[i] = shared_.stages[stage_][i][threadIdx.x];
    Start();
  }

 private:
  /// Starts copying the stage after those that were started, into the oldest one's place.
  __device__ __forceinline__ void Start() {
#pragma unroll
    for (int i = 0; i < kGroup / 8; ++i) {
      const int row = row_ + 8 * i;
      const bool valid = row < router_.num_experts && column_ < hidden_size_;
      const int64_t offset = valid ? int64_t{row} * hidden_size_ + column_ : 0;
      CopyAsync16(&shared_.stages[stage_][i][threadIdx.x], router_.weight + offset, valid);
    }
    CommitCopies();
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    piece_column_ += kPiece;
    column_ += kPiece;
    if (piece_column_ >= hidden_size_) {
      column_ -= piece_column_;
      piece_column_ = 0;
      row_ += kGroup;
    }
  }

  const RouterArgs& router_;
  const int hidden_size_;
  RouteShared<kSlots>& shared_;
  int stage_ = 0;  // where the next one to come goes, and the oldest is
  int row_ = 0;    // this thread's first row and its column of the next one to come
  int column_ = 0;
  int piece_column_ = 0;  // first column of that stage's piece
};

/// logits[token][expert] of the block's rows, which lie in shared.rows. A warp multiplies its
/// columns of each piece in rising order; the sums of the warps are added up in order. All threads.
template <int kSlots>
__device__ __forceinline__ void MultiplyRouter(const RouterArgs& router, const Rows& rows,
                                               int row_stride, WeightStream<kSlots>& weights,
                                               RouteShared<kSlots>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const BFloat16* row = shared.rows + min(lane / 4, rows.num_tokens - 1) * row_stride;
  for (int group = 0; group < router.num_experts; group += kGroup) {
    float sums[kGroup / 16][4] = {};
    for (int piece = 0; piece < rows.hidden_size; piece += kPiece) {
      uint4 weight[kGroup / 8], x = {};
      weights.Next(weight);
      const int column = piece + warp * 32 + lane % 4 * kVector;
      if (lane / 4 < rows.num_tokens && column < rows.hidden_size) {
        x = *reinterpret_cast<const uint4*>(row + column);
      }
      // mma wants columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of 16 from lane t of four. Which ones
      // go by that name is free, if only it is the same for both factors: here lane t has columns
      // 8 t to 8 t + 7 of 32, the first four for one mma, the others for the next.
#pragma unroll
      for (int tile = 0; tile < kGroup / 16; ++tile) {
        const uint4& low = weight[2 * tile];
        const uint4& high = weight[2 * tile + 1];
        MultiplyAdd(sums[tile], {low.x, high.x, low.y, high.y}, x.x, x.y);
        MultiplyAdd(sums[tile], {low.z, high.z, low.w, high.w}, x.z, x.w);
      }
    }
#pragma unroll
    for (int i = 0; i < kGroup / 4; ++i) {
      const int expert = i / 4 * 16 + lane / 4 + i % 4 / 2 * 8, token = lane % 4 * 2 + i % 2;
      if (token < kSlots) shared.partial_logits[warp][expert][token] = sums[i / 4][i % 4];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kGroup * kSlots; i += kThreads) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += shared.partial_logits[w][i / kSlots][i % kSlots];
      shared.logits[i % kSlots][group + i / kSlots] = sum;
    }
    __syncthreads();
  }
}

/// The experts that one lane of a warp has: lane, lane + 32, ... Fewer probable than all others:
/// one that was chosen, or that there is not.
struct LaneExperts {
  static constexpr int kCount = kMaxExperts / kWarpSize;
  static constexpr float kTaken = -1;

  float probabilities[kCount];
};

/// Softmax of logits over the warp.
__device__ __forceinline__ void Softmax(const float* logits, int num_experts,
                                        LaneExperts& experts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < LaneExperts::kCount; ++i) {
    const int expert = i * kWarpSize + lane;
    experts.probabilities[i] = expert < num_experts ? logits[expert] : -INFINITY;
    most = fmaxf(most, experts.probabilities[i]);
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < LaneExperts::kCount; ++i) {
    if (i * kWarpSize + lane >= num_experts) continue;
    experts.probabilities[i] = expf(experts.probabilities[i] - most);
    sum += experts.probabilities[i];
  }
  sum = WarpSum(sum);
#pragma unroll
  for (int i = 0; i < LaneExperts::kCount; ++i) {
    const bool exists = i * kWarpSize + lane < num_experts;
    experts.probabilities[i] = exists ? experts.probabilities[i] / sum : LaneExperts::kTaken;
  }
}

/// Takes the most probable expert that is left, the lower of two alike; returns its id, and its
/// probability. NaN counts as less than any probability, but more than being taken.
__device__ __forceinline__ int TakeMostLikely(LaneExperts& experts, float& probability) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  constexpr int kNaN = -1, kTaken = -2;
  int best_rank = kTaken, best_id = 0;
#pragma unroll
  for (int i = 0; i < LaneExperts::kCount; ++i) {
    const float p = experts.probabilities[i];
    const int rank = p >= 0 ? __float_as_int(p) : p < 0 ? kTaken : kNaN;
    if (rank > best_rank) {
      best_rank = rank;
      best_id = i * kWarpSize + lane;
    }
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const int rank = __shfl_xor_sync(kAllLanes, best_rank, distance);
    const int id = __shfl_xor_sync(kAllLanes, best_id, distance);
    if (rank > best_rank || (rank == best_rank && id < best_id)) {
      best_rank = rank;
      best_id = id;
    }
  }
#pragma unroll
  for (int i = 0; i < LaneExperts::kCount; ++i) {
    if (i * kWarpSize + lane == best_id) experts.probabilities[i] = LaneExperts::kTaken;
  }
  probability = best_rank >= 0 ? __int_as_float(best_rank) : NAN;
  return best_id;
}

/// Routes one token; lane k writes route k. All lanes of a warp.
__device__ __forceinline__ void RouteToken(const RouterArgs& router, const RoutingArgs& routing,
                                           const float* logits, int64_t token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int top_k = routing.num_routes - router.num_shared;
  LaneExperts experts;
  Softmax(logits, router.num_experts, experts);
  int32_t id = router.num_experts + lane - top_k;
  float weight = 1, sum = 0;
  for (int k = 0; k < top_k; ++k) {
    float probability;
    const int expert = TakeMostLikely(experts, probability);
    sum += probability;
    if (lane == k) {
      id = expert;
      weight = probability;
    }
  }
  if (router.renormalize && top_k > 1 && lane < top_k) weight /= sum + 1e-20f;
  if (routing.num_real_tokens != nullptr && token >= *routing.num_real_tokens) {
    id = -1;
    weight = 0;
  }
  if (lane < routing.num_routes) {
    routing.expert_ids[token * routing.num_routes + lane] = id;
    routing.weights[token * routing.num_routes + lane] = weight;
  }
}

/// A block for each shape.tokens_per_block tokens, whose parts together are at most kSlots.
template <int kSlots>
__global__ void __launch_bounds__(kThreads)
    RouteKernel(NormArgs args, const BFloat16* delta, RouterArgs router, RoutingArgs routing,
                RouteShape shape) {
  auto& shared = SharedMemory<RouteShared<kSlots>>();
  Rows rows = {.first_token = int64_t{blockIdx.x} * shape.tokens_per_block,
               .num_tokens = shape.tokens_per_block,
               .hidden_size = static_cast<int>(args.hidden_size),
               .num_parts = NumParts(args.hidden_size)};
  rows.num_tokens =
      static_cast<int>(min(int64_t{rows.num_tokens}, args.num_tokens - rows.first_token));
  const int row_stride = (rows.hidden_size + 63) / 64 * 64 + kRowPadding;
  WeightStream<kSlots> weights(router, rows.hidden_size, shared);
  {
    uint4 values[kSlots];
    AddDelta(args, delta, rows, values);
    NormRows(args, rows, values, shared.norm);
    ForEachVector<kSlots>(rows, [&](int slot, int token, int column) {
      StoreVector(values[slot], shared.rows + token * row_stride + column);
    });
  }
  __syncthreads();
  MultiplyRouter(router, rows, row_stride, weights, shared);
  WaitForCopies<0>();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (warp < rows.num_tokens) {
    RouteToken(router, routing, shared.logits[warp], rows.first_token + warp);
  }
}

/// Calls launch(integral_constant) with the least of 1, 2, 4 and 8 that is not below `slots`.
template <typename Body>
void WithSlots(int slots, const Body& body) {
  if (slots <= 1) return body(std::integral_constant<int, 1>());
  if (slots <= 2) return body(std::integral_constant<int, 2>());
  if (slots <= 4) return body(std::integral_constant<int, 4>());
  return body(std::integral_constant<int, kMaxParts>());
}

int PartsOfRow(const NormArgs& args) {
  return static_cast<int>((args.hidden_size + kPartSize - 1) / kPartSize);
}

/// Tokens of a block share one pass over the router's weight, but a device wants a hundred blocks.
int TokensPerBlock(const NormArgs& args) {
  constexpr int64_t kBlocks = 128;
  const int wanted =
      static_cast<int>(std::clamp<int64_t>(args.num_tokens / kBlocks, 1, kTokensPerTile));
  int tokens = 1;
  while (2 * tokens <= wanted && 2 * tokens * PartsOfRow(args) <= kMaxParts) tokens *= 2;
  return tokens;
}

Grid GridOf(int64_t blocks, size_t shared_bytes) {
  return {.blocks = static_cast<unsigned int>(blocks),
          .threads = kThreads,
          .shared_bytes = shared_bytes};
}

}  // namespace

void AddRmsNorm(const NormArgs& args, const BFloat16* delta, cudaStream_t stream) {
  WithSlots(PartsOfRow(args), [&](auto parts) {
    const Grid grid = GridOf(args.num_tokens, sizeof(NormShared<parts>));
    Launch(AddRmsNormKernel<parts>, grid, stream, args, delta);
  });
}

void AddRmsNormRoute(const NormArgs& args, const BFloat16* delta, const RouterArgs& router,
                     const RoutingArgs& routing, cudaStream_t stream) {
  const RouteShape shape = {.tokens_per_block = TokensPerBlock(args)};
  const int64_t blocks = (args.num_tokens + shape.tokens_per_block - 1) / shape.tokens_per_block;
  WithSlots(shape.tokens_per_block * PartsOfRow(args), [&](auto slots) {
    const Grid grid = GridOf(blocks, sizeof(RouteShared<slots>));
    Launch(RouteKernel<slots>, grid, stream, args, delta, router, routing, shape);
  });
}

void Combine(const NormArgs& args, const BFloat16* rows, const RoutingArgs& routing,
             cudaStream_t stream) {
  WithSlots(PartsOfRow(args), [&](auto parts) {
    const Grid grid = GridOf(args.num_tokens, sizeof(NormShared<parts>));
    Launch(CombineKernel<parts>, grid, stream, args, rows, routing);
  });
}

}  // namespace shoal::cuda
