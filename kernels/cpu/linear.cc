#include "kernels/cpu/linear.h"

namespace shoal {
namespace {

template <typename T>
void StoreBlock(const ProductBlock& block, const float* bias, const Tensor& out) {
  for (int64_t t = 0; t < block.num_tokens; ++t) {
    const float* values = block.values + t * ProductBlock::kRows;
    T* row = out.as<T>() + (block.first_token + t) * out.shape[1] + block.first_row;
    for (int64_t r = 0; r < block.num_rows; ++r) Round(values[r] + bias[r], row[r]);
  }
}

/// bias as float32 for the rows [first, first + count); zeros if there is none.
void LoadBias(const Tensor& bias, int64_t first, int64_t count, float* to) {
  std::fill_n(to, count, 0.0f);
  if (bias.empty()) return;
  WithStorage(bias.dtype, [&](auto element) {
    const auto* values = bias.as<const decltype(element)>() + first;
    for (int64_t r = 0; r < count; ++r) to[r] = ToFloat(values[r]);
  });
}

}  // namespace

const float* const* FloatRows::Widen(const Tensor& x, ThreadPool& pool) {
  const int64_t num_rows = x.shape[0], n = x.shape[1];
  const float** rows = rows_.Reserve(num_rows);
  const float* values = x.as<const float>();
  if (x.dtype == DType::kBFloat16) {
    float* wide = values_.Reserve(num_rows * n);
    const auto* narrow = x.as<const BFloat16>();
    pool.ParallelFor(num_rows, GrainFor(n), [=](int64_t begin, int64_t end, int) {
      for (int64_t i = begin * n; i < end * n; ++i) wide[i] = ToFloat(narrow[i]);
    });
    values = wide;
  }
  for (int64_t t = 0; t < num_rows; ++t) rows[t] = values + t * n;
  return rows;
}

void MultiplyRows(Cpu& cpu, const float* const* x, const Weight& weight, const Tensor& bias,
                  const Tensor& out) {
  const int64_t num_tokens = out.shape[0], num_rows = out.shape[1], n = weight.in_features;
  if (num_tokens == 0) return;
  const int64_t grain = GrainFor(ProductBlock::kRows * n * num_tokens);
  const auto store = [&](const ProductBlock& block) {
    float bias_values[ProductBlock::kRows];
    LoadBias(bias, block.first_row, block.num_rows, bias_values);
    WithStorage(out.dtype,
                [&](auto element) { StoreBlock<decltype(element)>(block, bias_values, out); });
  };
  WithStorage(weight.dtype, [&](auto element) {
    using W = decltype(element);
    const Product<W> product = {.x = x,
                                .begin = 0,
                                .end = num_tokens,
                                .weight = static_cast<const W*>(weight.data),
                                .num_rows = num_rows,
                                .in_features = n};
    cpu.pool->ParallelFor(NumChunks(num_rows), grain, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) MultiplyChunk(cpu, thread, product, i, store);
    });
  });
}

}  // namespace shoal
