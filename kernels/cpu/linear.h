// Linear: rows of activations times the rows of a weight.
#pragma once

#include <algorithm>

#include "kernels/cpu/dot_rows.h"
#include "kernels/cpu/element.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/weight.h"

namespace shoal {

/// What the stages compute with.
struct Cpu {
  ThreadPool* pool = nullptr;
  Isa isa = Isa::kBaseline;
};

/// Loop iterations of `macs` multiply-adds each that are worth handing to another thread.
inline int64_t GrainFor(int64_t macs) {
  constexpr int64_t kWorthwhileMacs = 1 << 16;
  return std::max<int64_t>(1, kWorthwhileMacs / std::max<int64_t>(1, macs));
}

/// The rows of a matrix as float32, each by its address.
class FloatRows {
 public:
  /// Pointers to the rows of x [num_tokens, n], widened unless they are float32. Valid until the
  /// next call, and as long as x.
  const float* const* Widen(const Tensor& x, ThreadPool& pool);

 private:
  Scratch<float> values_;
  Scratch<const float*> rows_;
};

/// Sums of the tokens [first_token, first_token + num_tokens) with the weight's rows [first_row,
/// first_row + num_rows): values[t * kStride + r].
struct DotBlock {
  static constexpr int64_t kTokens = 48;  // so that a block's x and weight stay in the L2 cache
  static constexpr int64_t kRows = 32;
  static constexpr int64_t kStride = kRows;

  int64_t first_token = 0;
  int64_t num_tokens = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  alignas(64) float values[kTokens * kStride] = {};
};

/// Multiplies the tokens and rows named in `block`. x: pointers to all tokens' rows; weight
/// [., in_features].
template <typename W>
void MultiplyBlock(const Cpu& cpu, const float* const* x, const W* weight, int64_t in_features,
                   DotBlock& block) {
  RunKernel<DotRows<W>>(cpu.isa, {.x = x + block.first_token,
                                  .num_x = block.num_tokens,
                                  .weight = weight + block.first_row * in_features,
                                  .num_rows = block.num_rows,
                                  .in_features = in_features,
                                  .out = block.values,
                                  .out_stride = DotBlock::kStride});
}

/// Calls body(block) for blocks, not yet multiplied, that cover the tokens [begin, end) and
/// the rows of chunk number `chunk` of a weight of `num_rows` rows.
template <typename Body>
void ForEachBlock(int64_t begin, int64_t end, int64_t chunk, int64_t num_rows, const Body& body) {
  DotBlock block;
  block.first_row = chunk * DotBlock::kRows;
  block.num_rows = std::min(DotBlock::kRows, num_rows - block.first_row);
  for (int64_t t = begin; t < end; t += DotBlock::kTokens) {
    block.first_token = t;
    block.num_tokens = std::min(DotBlock::kTokens, end - t);
    body(block);
  }
}

/// Chunks of DotBlock::kRows rows.
inline int64_t NumChunks(int64_t num_rows) {
  return (num_rows + DotBlock::kRows - 1) / DotBlock::kRows;
}

/// out[t, r] = x[t] . weight[r] + bias[r], r < out's columns; see Ops::Linear. x: num_tokens rows.
void MultiplyRows(const Cpu& cpu, const float* const* x, const Weight& weight, const Tensor& bias,
                  const Tensor& out);

}  // namespace shoal
