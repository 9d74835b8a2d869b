// Linear: rows of activations times the rows of a weight.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/dot_rows.h"
#include "kernels/cpu/element.h"
#include "kernels/weight.h"

namespace shoal {

/// The rows of a matrix as float32, each by its address.
class FloatRows {
 public:
  explicit FloatRows(UsedBytes* used) : values_(used), rows_(used) {}

  /// Pointers to the rows of x [num_tokens, n], widened unless they are float32. Valid until the
  /// next call, and as long as x.
  const float* const* Widen(const Tensor& x, ThreadPool& pool);

 private:
  Scratch<float> values_;
  Scratch<const float*> rows_;
};

/// The tokens [begin, end), given by pointers to all tokens' rows, times weight [num_rows,
/// in_features].
template <typename W>
struct Product {
  const float* const* x = nullptr;
  int64_t begin = 0;
  int64_t end = 0;
  const W* weight = nullptr;
  int64_t num_rows = 0;
  int64_t in_features = 0;
};

/// A piece of a product: the sums of token first_token + t with the weight's row first_row + r are
/// values[t * kRows + r].
struct ProductBlock {
  static constexpr int64_t kTokens = 48;  // so that a block's x and weight stay in the L2 cache
  static constexpr int64_t kRows = 32;

  int64_t first_token = 0;
  int64_t num_tokens = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  alignas(64) float values[kTokens * kRows] = {};
};

/// The weight rows of a product are computed in chunks of ProductBlock::kRows.
inline int64_t NumChunks(int64_t num_rows) {
  return (num_rows + ProductBlock::kRows - 1) / ProductBlock::kRows;
}

/// Multiplies the tokens with the rows of `block`, which lie at `weight`; hands over block by
/// block.
template <typename W, typename V, typename Use>
void MultiplyRowsOfBlock(Cpu& cpu, const Product<W>& product, const V* weight, ProductBlock& block,
                         const Use& use) {
  for (int64_t t = product.begin; t < product.end; t += ProductBlock::kTokens) {
    block.first_token = t;
    block.num_tokens = std::min(ProductBlock::kTokens, product.end - t);
    RunKernel<DotRows<V>>(cpu.isa, {.x = product.x + t,
                                    .num_x = block.num_tokens,
                                    .weight = weight,
                                    .num_rows = block.num_rows,
                                    .in_features = product.in_features,
                                    .out = block.values,
                                    .out_stride = ProductBlock::kRows});
    use(block);
  }
}

/// Computes one chunk and hands it to use(block), block by block, as thread number `thread`.
template <typename W, typename Use>
void MultiplyChunk(Cpu& cpu, int thread, const Product<W>& product, int64_t chunk, const Use& use) {
  ProductBlock block;
  block.first_row = chunk * ProductBlock::kRows;
  block.num_rows = std::min(ProductBlock::kRows, product.num_rows - block.first_row);
  const W* weight = product.weight + block.first_row * product.in_features;
  if constexpr (!std::is_same_v<W, float>) {
    // For many tokens it pays to widen the weight once instead of once per tile.
    constexpr int64_t kManyTokens = 12;
    if (product.end - product.begin >= kManyTokens) {
      const int64_t count = block.num_rows * product.in_features;
      float* wide = cpu.Workspace(thread, count);
      for (int64_t i = 0; i < count; ++i) wide[i] = ToFloat(weight[i]);
      return MultiplyRowsOfBlock(cpu, product, wide, block, use);
    }
  }
  MultiplyRowsOfBlock(cpu, product, weight, block, use);
}

/// out[t, r] = x[t] . weight[r] + bias[r], r < out's columns; see Ops::Linear. x: a pointer for
/// each row of out.
void MultiplyRows(Cpu& cpu, const float* const* x, const Weight& weight, const Tensor& bias,
                  const Tensor& out);

}  // namespace shoal
