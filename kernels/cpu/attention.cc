#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/cpu/dot_rows.h"
#include "kernels/cpu/element.h"

namespace shoal {
namespace {

constexpr int64_t kKeys = 64;      // keys per step of the online softmax
constexpr int64_t kTileRows = 32;  // query rows (tokens x heads of one key head) per tile, about

/// One key head's share of the work on one tile: `num_rows` query rows, padded to `stride` floats.
struct TileWork {
  int64_t num_rows = 0;
  int64_t stride = 0;
  float* queries = nullptr;  // [num_rows, stride]
  float* keys = nullptr;     // [kKeys, stride]
  float* values = nullptr;   // [kKeys, stride]
  float* scores = nullptr;   // [num_rows, kKeys]
  float* sums = nullptr;     // [num_rows, stride] weighted values so far
  float* most = nullptr;     // [num_rows] highest score so far
  float* total = nullptr;    // [num_rows] sum of the weights so far

  static int64_t NumFloats(int64_t num_rows, int64_t stride) {
    return 2 * num_rows * stride + 2 * kKeys * stride + num_rows * kKeys +
           2 * RoundUpToLanes(num_rows);
  }
  TileWork(float* memory, int64_t num_rows, int64_t stride) : num_rows(num_rows), stride(stride) {
    const auto take = [&](int64_t count) { return std::exchange(memory, memory + count); };
    queries = take(num_rows * stride);
    keys = take(kKeys * stride);
    values = take(kKeys * stride);
    scores = take(num_rows * kKeys);
    sums = take(num_rows * stride);
    most = take(RoundUpToLanes(num_rows));
    total = take(RoundUpToLanes(num_rows));
  }
};

/// Adds up to 64 keys to the rows [begin, end) of a tile, which see the first `num_keys` of them.
struct AttendKeys {
  struct Args {
    const TileWork* work = nullptr;
    int64_t begin = 0;
    int64_t end = 0;
    int64_t num_keys = 0;
    float scale = 1;
  };

  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    const TileWork& work = *args.work;
    for (int64_t row = args.begin; row < args.end; ++row) {
      float* scores = work.scores + row * kKeys;
      const float correction =
          Weigh(scores, args.num_keys, args.scale, work.most[row], work.total[row]);
      float* sums = work.sums + row * work.stride;
      int64_t i = 0;
      for (; i + 8 * kLanes <= work.stride && isa == Isa::kAvx512; i += 8 * kLanes) {
        AddValues<8>(scores, args.num_keys, work.values + i, work.stride, correction, sums + i);
      }
      for (; i + 4 * kLanes <= work.stride; i += 4 * kLanes) {
        AddValues<4>(scores, args.num_keys, work.values + i, work.stride, correction, sums + i);
      }
      for (; i < work.stride; i += kLanes) {
        AddValues<1>(scores, args.num_keys, work.values + i, work.stride, correction, sums + i);
      }
    }
  }

 private:
  /// Turns scores into weights e^(score - maximum) and updates maximum and sum of the weights.
  /// Returns what the row's earlier weights have to be multiplied with.
  static SHOAL_INLINE float Weigh(float* scores, int64_t num_keys, float scale, float& most,
                                  float& total) {
    const int64_t padded = RoundUpToLanes(num_keys);
    for (int64_t j = num_keys; j < padded; ++j) scores[j] = -std::numeric_limits<float>::infinity();
    Vec highest, v;
    Fill(-std::numeric_limits<float>::infinity(), highest);
    for (int64_t j = 0; j < padded; j += kLanes) {
      Load(scores + j, v);
      v = v * scale;
      Store(v, scores + j);
      Max(v, highest, highest);
    }
    const float next = std::max(ReduceMax(highest), most);
    Vec sum = {};
    for (int64_t j = 0; j < padded; j += kLanes) {
      Load(scores + j, v);
      Exp(v - next, v);
      Store(v, scores + j);
      sum = sum + v;
    }
    Fill(most - next, v);
    Exp(v, v);
    const float correction = v[0];
    most = next;
    total = total * correction + ReduceAdd(sum);
    return correction;
  }

  /// sums = sums * correction + the weighted values of the keys, in order; kVecs * 16 columns.
  template <int kVecs>
  static SHOAL_INLINE void AddValues(const float* weights, int64_t num_keys, const float* values,
                                     int64_t stride, float correction, float* sums) {
    Vec sum[kVecs];
#pragma GCC unroll 8
    for (int c = 0; c < kVecs; ++c) {
      Load(sums + c * kLanes, sum[c]);
      sum[c] = sum[c] * correction;
    }
    for (int64_t j = 0; j < num_keys; ++j) {
      Vec weight;
      Fill(weights[j], weight);
#pragma GCC unroll 8
      for (int c = 0; c < kVecs; ++c) {
        Vec v;
        Load(values + j * stride + c * kLanes, v);
        sum[c] = weight * v + sum[c];
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kVecs; ++c) Store(sum[c], sums + c * kLanes);
  }
};

/// Widens `count` rows of `n` elements to rows of `stride` floats, padded with zeros.
template <typename T>
void WidenRows(const T* from, int64_t count, int64_t n, int64_t stride, float* to) {
  for (int64_t r = 0; r < count; ++r, from += n, to += stride) {
    for (int64_t i = 0; i < n; ++i) to[i] = ToFloat(from[i]);
    for (int64_t i = n; i < stride; ++i) to[i] = 0;
  }
}

/// One layer's attention.
template <typename T>
struct Layer {
  const T* qkv = nullptr;
  const T* kv = nullptr;
  T* out = nullptr;
  AttentionShape shape;
  int64_t block_size = 0;

  int64_t group() const { return shape.num_heads / shape.num_kv_heads; }
  int64_t qkv_width() const {
    return (shape.num_heads + int64_t{2} * shape.num_kv_heads) * shape.head_dim;
  }
};

/// Queries of one sequence with the heads that share one key head.
template <typename T>
struct HeadTile {
  const Layer<T>& layer;
  int64_t kv_head = 0;
  int64_t first_token = 0;
  int64_t num_tokens = 0;
  const int32_t* positions = nullptr;  // of the tile's tokens
  const int32_t* blocks = nullptr;     // of the sequence
  TileWork work;

  void Attend(Isa isa) const {
    WidenQueries();
    std::fill_n(work.sums, work.num_rows * work.stride, 0.0f);
    std::fill_n(work.most, work.num_rows, -std::numeric_limits<float>::infinity());
    std::fill_n(work.total, work.num_rows, 0.0f);
    const int64_t num_keys = *std::max_element(positions, positions + num_tokens) + 1;
    for (int64_t begin = 0; begin < num_keys; begin += kKeys) {
      const int64_t end = std::min(begin + kKeys, num_keys);
      WidenKeys(begin, end);
      Score(isa, end - begin);
      AddKeys(isa, begin, end);
    }
    StoreResults();
  }

 private:
  void WidenQueries() const {
    const int64_t group = layer.group(), d = layer.shape.head_dim;
    for (int64_t t = 0; t < num_tokens; ++t) {
      const T* row = layer.qkv + (first_token + t) * layer.qkv_width() + kv_head * group * d;
      WidenRows(row, group, d, work.stride, work.queries + t * group * work.stride);
    }
  }

  /// The keys [begin, end) of the sequence, with their values.
  void WidenKeys(int64_t begin, int64_t end) const {
    const int64_t block_size = layer.block_size, d = layer.shape.head_dim;
    const int64_t num_kv_heads = layer.shape.num_kv_heads;
    for (int64_t key = begin; key < end;) {
      const int64_t offset = key % block_size;
      const int64_t count = std::min(block_size - offset, end - key);
      const int64_t head = int64_t{2} * blocks[key / block_size] * num_kv_heads + kv_head;
      const T* keys = layer.kv + (head * block_size + offset) * d;
      const T* values = keys + num_kv_heads * block_size * d;
      WidenRows(keys, count, d, work.stride, work.keys + (key - begin) * work.stride);
      WidenRows(values, count, d, work.stride, work.values + (key - begin) * work.stride);
      key += count;
    }
  }

  /// scores = queries times keys, all of them, visible or not.
  void Score(Isa isa, int64_t num_keys) const {
    constexpr int64_t kMaxPointers = 64;
    const float* rows[kMaxPointers];
    for (int64_t first = 0; first < work.num_rows; first += kMaxPointers) {
      const int64_t count = std::min(kMaxPointers, work.num_rows - first);
      for (int64_t r = 0; r < count; ++r) rows[r] = work.queries + (first + r) * work.stride;
      RunKernel<DotRows<float>>(isa, {.x = rows,
                                      .num_x = count,
                                      .weight = work.keys,
                                      .num_rows = num_keys,
                                      .in_features = work.stride,
                                      .out = work.scores + first * kKeys,
                                      .out_stride = kKeys});
    }
  }

  /// Adds the keys [begin, end) to those queries that see them.
  void AddKeys(Isa isa, int64_t begin, int64_t end) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(layer.shape.head_dim));
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t visible = std::min<int64_t>(positions[t] + 1, end) - begin;
      if (visible <= 0) continue;
      RunKernel<AttendKeys>(isa, {.work = &work,
                                  .begin = t * layer.group(),
                                  .end = (t + 1) * layer.group(),
                                  .num_keys = visible,
                                  .scale = scale});
    }
  }

  void StoreResults() const {
    const int64_t group = layer.group(), d = layer.shape.head_dim;
    for (int64_t row = 0; row < work.num_rows; ++row) {
      const int64_t head = kv_head * group + row % group;
      T* result = layer.out + ((first_token + row / group) * layer.shape.num_heads + head) * d;
      const float* sums = work.sums + row * work.stride;
      for (int64_t i = 0; i < d; ++i) Round(sums[i] / work.total[row], result[i]);
    }
  }
};

/// Rotates pairs (i, i + half) of one head by the angles of `table` [half, 2].
template <typename T>
void Rotate(const float* table, int64_t half, T* head) {
  for (int64_t i = 0; i < half; ++i) {
    const float cosine = table[2 * i], sine = table[2 * i + 1];
    const float a = ToFloat(head[i]), b = ToFloat(head[i + half]);
    Round(a * cosine - b * sine, head[i]);
    Round(b * cosine + a * sine, head[i + half]);
  }
}

}  // namespace

void RopeAndWriteKvRows(Cpu& cpu, const Tensor& qkv, const Tensor& rope_table,
                        const AttentionMeta& meta, const AttentionShape& shape, const Tensor& kv) {
  const int64_t d = shape.head_dim, block_size = kv.shape[3], width = qkv.shape[1];
  const int64_t rotated_heads = shape.num_heads + shape.num_kv_heads;
  const auto* positions = meta.positions.as<const int32_t>();
  const auto* slots = meta.slot_mapping.as<const int32_t>();
  const auto run_token = [&](int64_t t, auto* rows, auto* cache) {
    if (slots[t] < 0) return;
    auto* row = rows + t * width;
    SHOAL_CHECK(positions[t] >= 0 && positions[t] < rope_table.shape[0], "position {} of {}",
                positions[t], rope_table.shape[0]);
    SHOAL_CHECK(slots[t] < kv.shape[0] * block_size, "slot {} of {}", slots[t],
                kv.shape[0] * block_size);
    const float* angles = rope_table.as<const float>() + positions[t] * d;
    for (int64_t head = 0; head < rotated_heads; ++head) Rotate(angles, d / 2, row + head * d);
    const int64_t block = slots[t] / block_size, offset = slots[t] % block_size;
    auto* to = cache + (block * 2 * shape.num_kv_heads * block_size + offset) * d;
    for (int64_t i = 0; i < 2 * shape.num_kv_heads; ++i) {  // keys, then values
      std::copy_n(row + (shape.num_heads + i) * d, d, to + i * block_size * d);
    }
  };
  cpu.pool->ParallelFor(qkv.shape[0], GrainFor(4 * width), [&](int64_t begin, int64_t end, int) {
    WithStorage(qkv.dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t t = begin; t < end; ++t) run_token(t, qkv.as<T>(), kv.as<T>());
    });
  });
}

void AttentionRunner::CutIntoTiles(const AttentionMeta& meta, int64_t tile_tokens) {
  const auto* positions = meta.positions.as<const int32_t>();
  const auto* cu_seqlens = meta.cu_seqlens.as<const int32_t>();
  tiles_.clear();
  for (int64_t s = 0; s + 1 < meta.cu_seqlens.shape[0]; ++s) {
    const int64_t begin = cu_seqlens[s], end = cu_seqlens[s + 1];
    if (begin == end) continue;
    SHOAL_CHECK(0 <= begin && begin < end && end <= meta.positions.shape[0],
                "tokens [{}, {}) of {}", begin, end, meta.positions.shape[0]);
    SHOAL_CHECK(end - begin <= meta.max_query_len && positions[end - 1] < meta.max_context_len,
                "{} tokens up to position {}, with bounds of {} tokens of {}", end - begin,
                positions[end - 1], meta.max_query_len, meta.max_context_len);
    for (int64_t t = begin; t < end; t += tile_tokens) {
      tiles_.push_back({s, t, std::min(tile_tokens, end - t)});
    }
  }
}

void AttentionRunner::Run(Cpu& cpu, const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
                          const AttentionShape& shape, const Tensor& out) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t tile_tokens = std::max<int64_t>(1, kTileRows / group);
  CutIntoTiles(meta, tile_tokens);
  const int64_t stride = RoundUpToLanes(shape.head_dim);
  const auto num_units = static_cast<int64_t>(tiles_.size()) * shape.num_kv_heads;
  WithStorage(qkv.dtype, [&](auto element) {
    using T = decltype(element);
    const Layer<T> layer = {.qkv = qkv.as<const T>(),
                            .kv = kv.as<const T>(),
                            .out = out.as<T>(),
                            .shape = shape,
                            .block_size = kv.shape[3]};
    const auto run_unit = [&](int64_t unit, int thread) {
      const QueryTile& tile = tiles_[unit / shape.num_kv_heads];
      const int64_t num_rows = tile.num_tokens * group;
      float* memory = cpu.Workspace(thread, TileWork::NumFloats(num_rows, stride));
      const HeadTile<T> heads = {.layer = layer,
                                 .kv_head = unit % shape.num_kv_heads,
                                 .first_token = tile.first_token,
                                 .num_tokens = tile.num_tokens,
                                 .positions = meta.positions.as<const int32_t>() + tile.first_token,
                                 .blocks = meta.block_tables.as<const int32_t>() +
                                           tile.sequence * meta.block_tables.shape[1],
                                 .work = TileWork(memory, num_rows, stride)};
      heads.Attend(cpu.isa);
    };
    cpu.pool->ParallelFor(num_units, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t unit = begin; unit < end; ++unit) run_unit(unit, thread);
    });
  });
}

}  // namespace shoal
