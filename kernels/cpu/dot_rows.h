// DotRows: the inner loop of every matrix product of the backend.
#pragma once

#include <algorithm>

#include "kernels/cpu/simd.h"

namespace shoal {

/// out[t, r] = sum over i of x[t][i] * weight[r, i], r < num_rows.
///
/// Each product has one fixed order: 16 partial sums, lane i taking elements i, i + 16, ..., the
/// last ones padded with zeros, then ReduceAdd. The shape of the register tile that computes it,
/// hence the number of rows on either side, has no part in the result.
template <typename W>
struct DotRows {
  struct Args {
    const float* const* x = nullptr;  // num_x rows of in_features
    int64_t num_x = 0;
    const W* weight = nullptr;  // [num_rows, in_features]
    int64_t num_rows = 0;
    int64_t in_features = 0;
    float* out = nullptr;  // [num_x, out_stride]
    int64_t out_stride = 0;
  };

  /// Tiles of kTileX x kTileRows sums fill the registers of the instruction set.
  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    constexpr int kTileX = isa == Isa::kAvx512 ? 6 : 2;
    for (int64_t t = 0; t < args.num_x; t += kTileX) {
      RunRows<isa, kTileX>(args, t, std::min<int64_t>(kTileX, args.num_x - t));
    }
  }

 private:
  /// Rows of x [t, t + count), count <= kMaxX, against the whole weight.
  template <Isa isa, int kMaxX>
  static SHOAL_INLINE void RunRows(const Args& args, int64_t t, int64_t count) {
    if constexpr (kMaxX > 1) {
      if (count < kMaxX) return RunRows<isa, kMaxX - 1>(args, t, count);
    }
    constexpr int kTileRows = isa == Isa::kAvx512 ? (kMaxX == 1 ? 8 : 4) : 2;
    int64_t r = 0;
    for (; r + kTileRows <= args.num_rows; r += kTileRows) RunTile<kMaxX, kTileRows>(args, t, r);
    for (; r < args.num_rows; ++r) RunTile<kMaxX, 1>(args, t, r);
  }

  template <int kX, int kRows>
  static SHOAL_INLINE void RunTile(const Args& args, int64_t t, int64_t r) {
    const float* const* x = args.x + t;
    const W* weight = args.weight + r * args.in_features;
    Vec sums[kX][kRows] = {};
    const int64_t whole = args.in_features / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      Vec w[kRows];
#pragma GCC unroll 8
      for (int b = 0; b < kRows; ++b) {
        // Rows often end with a page, where the hardware's own prefetching stops.
        __builtin_prefetch(weight + (b + kRows) * args.in_features + i);
        Load(weight + b * args.in_features + i, w[b]);
      }
#pragma GCC unroll 8
      for (int a = 0; a < kX; ++a) {
        Vec v;
        Load(x[a] + i, v);
#pragma GCC unroll 8
        for (int b = 0; b < kRows; ++b) sums[a][b] = v * w[b] + sums[a][b];
      }
    }
    if (const int64_t rest = args.in_features - whole; rest > 0) {
      for (int a = 0; a < kX; ++a) {
        Vec v;
        LoadPartial(x[a] + whole, rest, v);
        for (int b = 0; b < kRows; ++b) {
          Vec w;
          LoadPartial(weight + b * args.in_features + whole, rest, w);
          sums[a][b] = v * w + sums[a][b];
        }
      }
    }
    float* out = args.out + t * args.out_stride + r;
#pragma GCC unroll 8
    for (int a = 0; a < kX; ++a) {
#pragma GCC unroll 8
      for (int b = 0; b < kRows; ++b) out[a * args.out_stride + b] = ReduceAdd(sums[a][b]);
    }
  }
};

}  // namespace shoal
