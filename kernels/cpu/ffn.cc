#include "kernels/cpu/ffn.h"

#include <numeric>

namespace shoal {
namespace {

/// gate = gate / (1 + e^-gate) * up over n floats, n a multiple of 16.
struct SwiGlu {
  struct Args {
    const float* up = nullptr;
    int64_t n = 0;
    float* gate = nullptr;
  };

  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    for (int64_t i = 0; i < args.n; i += kLanes) {
      Vec gate, up, e;
      Load(args.gate + i, gate);
      Load(args.up + i, up);
      Exp(-gate, e);
      Store(gate / (e + 1.0f) * up, args.gate + i);
    }
  }
};

}  // namespace

void FfnRunner::RunDense(Cpu& cpu, const Tensor& x, const FfnWeights& weights, const Tensor& out) {
  const int64_t num_tokens = x.shape[0];
  const float* const* rows = float_rows_.Widen(x, *cpu.pool);
  x_.assign(rows, rows + num_tokens);
  out_rows_.resize(num_tokens);
  std::iota(out_rows_.begin(), out_rows_.end(), 0);
  groups_.assign(num_tokens > 0 ? 1 : 0, {.expert = 0, .begin = 0, .end = num_tokens});
  RunGroups(cpu, weights, out);
}

void FfnRunner::RunRouted(Cpu& cpu, const Tensor& x, const Tensor& expert_ids,
                          const LocalExperts& experts, const Tensor& rows) {
  GroupByExpert(float_rows_.Widen(x, *cpu.pool), expert_ids, experts);
  RunGroups(cpu, experts.weights, rows);
}

/// Orders the (token, k) pairs of local experts by expert, then as they come: a counting sort.
void FfnRunner::GroupByExpert(const float* const* x, const Tensor& expert_ids,
                              const LocalExperts& experts) {
  const int64_t top_k = expert_ids.shape[1];
  const int64_t num_pairs = expert_ids.num_elements();
  const auto* ids = expert_ids.as<const int32_t>();
  const int64_t num_experts = experts.weights.num_experts;
  const auto is_local = [&](int64_t e) { return e >= 0 && e < num_experts; };
  counts_.assign(num_experts, 0);
  for (int64_t i = 0; i < num_pairs; ++i) {
    if (const int64_t e = ids[i] - experts.first_expert; is_local(e)) ++counts_[e];
  }
  groups_.clear();
  int64_t num_rows = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t begin = num_rows;
    num_rows += counts_[e];
    if (counts_[e] > 0) groups_.push_back({.expert = e, .begin = begin, .end = num_rows});
    counts_[e] = begin;  // from here on: where the expert's next row goes
  }
  x_.resize(num_rows);
  out_rows_.resize(num_rows);
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t e = ids[i] - experts.first_expert;
    if (!is_local(e)) continue;
    const int64_t row = counts_[e]++;
    x_[row] = x[i / top_k];
    out_rows_[row] = i;
  }
}

void FfnRunner::RunGroups(Cpu& cpu, const FfnWeights& weights, const Tensor& out) {
  const auto num_rows = static_cast<int64_t>(x_.size());
  const auto num_groups = static_cast<int64_t>(groups_.size());
  if (num_groups == 0) return;
  const int64_t padded_width = NumChunks(weights.width) * ProductBlock::kRows;
  float* values = activation_values_.Reserve(num_rows * padded_width);
  activations_.resize(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) activations_[i] = values + i * padded_width;

  const auto run = [&](int64_t rows_per_group, int64_t macs_per_row, const auto& unit) {
    const int64_t chunks = NumChunks(rows_per_group);
    const int64_t grain = GrainFor(ProductBlock::kRows * macs_per_row * num_rows / num_groups);
    cpu.pool->ParallelFor(num_groups * chunks, grain, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) unit(thread, groups_[i / chunks], i % chunks);
    });
  };
  WithStorage(weights.dtype, [&](auto element) {
    using T = decltype(element);
    run(weights.width, 2 * weights.hidden_size, [&](int thread, const Group& group, int64_t chunk) {
      GateUp<T>(cpu, thread, weights, group, chunk);
    });
    run(weights.hidden_size, weights.width, [&](int thread, const Group& group, int64_t chunk) {
      Down<T>(cpu, thread, weights, group, chunk, out.as<T>());
    });
  });
}

/// The activations of one chunk of the width, all of the group's rows.
template <typename T>
void FfnRunner::GateUp(Cpu& cpu, int thread, const FfnWeights& weights, const Group& group,
                       int64_t chunk) {
  constexpr int64_t kRows = ProductBlock::kRows;
  const int64_t matrix = weights.width * weights.hidden_size;
  Product<T> product = {
      .x = x_.data(),
      .begin = group.begin,
      .end = group.end,
      .weight = static_cast<const T*>(weights.gate_up) + group.expert * 2 * matrix,
      .num_rows = weights.width,
      .in_features = weights.hidden_size};
  MultiplyChunk(cpu, thread, product, chunk, [&](const ProductBlock& gate) {
    for (int64_t t = 0; t < gate.num_tokens; ++t) {
      std::copy_n(gate.values + t * kRows, kRows,
                  activations_[gate.first_token + t] + gate.first_row);
    }
  });
  product.weight += matrix;
  MultiplyChunk(cpu, thread, product, chunk, [&](const ProductBlock& up) {
    for (int64_t t = 0; t < up.num_tokens; ++t) {
      float* row = activations_[up.first_token + t] + up.first_row;
      RunKernel<SwiGlu>(cpu.isa, {.up = up.values + t * kRows, .n = kRows, .gate = row});
      for (int64_t r = 0; r < kRows; ++r) {
        T rounded;
        Round(row[r], rounded);
        row[r] = ToFloat(rounded);
      }
    }
  });
}

/// One chunk of the hidden size of the results, all of the group's rows.
template <typename T>
void FfnRunner::Down(Cpu& cpu, int thread, const FfnWeights& weights, const Group& group,
                     int64_t chunk, T* out) {
  const int64_t hidden_size = weights.hidden_size;
  const Product<T> product = {
      .x = activations_.data(),
      .begin = group.begin,
      .end = group.end,
      .weight = static_cast<const T*>(weights.down) + group.expert * hidden_size * weights.width,
      .num_rows = hidden_size,
      .in_features = weights.width};
  MultiplyChunk(cpu, thread, product, chunk, [&](const ProductBlock& block) {
    for (int64_t t = 0; t < block.num_tokens; ++t) {
      const float* values = block.values + t * ProductBlock::kRows;
      T* row = out + out_rows_[block.first_token + t] * hidden_size + block.first_row;
      for (int64_t r = 0; r < block.num_rows; ++r) Round(values[r], row[r]);
    }
  });
}

}  // namespace shoal
