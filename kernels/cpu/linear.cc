#include "kernels/cpu/linear.h"

namespace shoal {
namespace {

template <typename T>
void StoreBlock(const DotBlock& block, const float* bias, int64_t out_columns, T* out) {
  for (int64_t t = 0; t < block.num_tokens; ++t) {
    const float* values = block.values + t * DotBlock::kStride;
    T* row = out + (block.first_token + t) * out_columns + block.first_row;
    for (int64_t r = 0; r < block.num_rows; ++r) Round(values[r] + bias[r], row[r]);
  }
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

void MultiplyRows(const Cpu& cpu, const float* const* x, const Weight& weight, const Tensor& bias,
                  const Tensor& out) {
  const int64_t num_tokens = out.shape[0], num_rows = out.shape[1], n = weight.in_features;
  const auto run_chunk = [&](int64_t chunk, const auto* w) {
    float bias_values[DotBlock::kRows] = {};
    ForEachBlock(0, num_tokens, chunk, num_rows, [&](DotBlock& block) {
      if (!bias.empty()) {
        WithStorage(bias.dtype, [&](auto element) {
          const auto* values = bias.as<const decltype(element)>() + block.first_row;
          for (int64_t r = 0; r < block.num_rows; ++r) bias_values[r] = ToFloat(values[r]);
        });
      }
      MultiplyBlock(cpu, x, w, n, block);
      WithStorage(out.dtype, [&](auto element) {
        StoreBlock(block, bias_values, num_rows, out.as<decltype(element)>());
      });
    });
  };
  const int64_t grain = GrainFor(DotBlock::kRows * n * num_tokens);
  cpu.pool->ParallelFor(NumChunks(num_rows), grain, [&](int64_t begin, int64_t end, int) {
    WithStorage(weight.dtype, [&](auto element) {
      const auto* w = static_cast<const decltype(element)*>(weight.data);
      for (int64_t chunk = begin; chunk < end; ++chunk) run_chunk(chunk, w);
    });
  });
}

}  // namespace shoal
