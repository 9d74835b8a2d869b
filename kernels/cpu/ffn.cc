#include "kernels/cpu/ffn.h"

#include <numeric>

namespace shoal {
namespace {

/// activation = gate / (1 + e^-gate) * up over n floats, n a multiple of 16.
struct SwiGlu {
  struct Args {
    const float* gate = nullptr;
    const float* up = nullptr;
    int64_t n = 0;
    float* activation = nullptr;
  };

  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    for (int64_t i = 0; i < args.n; i += kLanes) {
      Vec gate, up, e;
      Load(args.gate + i, gate);
      Load(args.up + i, up);
      Exp(-gate, e);
      Store(gate / (e + 1.0f) * up, args.activation + i);
    }
  }
};

}  // namespace

void FfnRunner::RunDense(const Cpu& cpu, const Tensor& x, const FfnWeights& weights,
                         const Tensor& out) {
  const int64_t num_tokens = x.shape[0];
  const float* const* rows = float_rows_.Widen(x, *cpu.pool);
  x_.assign(rows, rows + num_tokens);
  out_rows_.resize(num_tokens);
  std::iota(out_rows_.begin(), out_rows_.end(), 0);
  groups_.assign(num_tokens > 0 ? 1 : 0, {.expert = 0, .begin = 0, .end = num_tokens});
  RunGroups(cpu, weights, out);
}

void FfnRunner::RunRouted(const Cpu& cpu, const Tensor& x, const Routing& routing,
                          const LocalExperts& experts, const Tensor& rows) {
  GroupByExpert(float_rows_.Widen(x, *cpu.pool), routing, experts);
  RunGroups(cpu, experts.weights, rows);
}

/// Orders the (token, k) pairs of local experts by expert, then as they come: a counting sort.
void FfnRunner::GroupByExpert(const float* const* x, const Routing& routing,
                              const LocalExperts& experts) {
  const int64_t top_k = routing.expert_ids.shape[1];
  const int64_t num_pairs = routing.expert_ids.num_elements();
  const auto* ids = routing.expert_ids.as<const int32_t>();
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

void FfnRunner::RunGroups(const Cpu& cpu, const FfnWeights& weights, const Tensor& out) {
  const auto num_rows = static_cast<int64_t>(x_.size());
  const auto num_groups = static_cast<int64_t>(groups_.size());
  if (num_groups == 0) return;
  const int64_t padded_width = NumChunks(weights.width) * DotBlock::kRows;
  float* values = activation_values_.Reserve(num_rows * padded_width);
  activations_.resize(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) activations_[i] = values + i * padded_width;

  const auto run = [&](int64_t rows_per_group, int64_t macs_per_row, const auto& unit) {
    const int64_t chunks = NumChunks(rows_per_group);
    const int64_t grain = GrainFor(DotBlock::kRows * macs_per_row * num_rows / num_groups);
    cpu.pool->ParallelFor(num_groups * chunks, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) unit(groups_[i / chunks], i % chunks);
    });
  };
  WithStorage(weights.dtype, [&](auto element) {
    using T = decltype(element);
    run(weights.width, 2 * weights.hidden_size,
        [&](const Group& group, int64_t chunk) { GateUp<T>(cpu, weights, group, chunk); });
    run(weights.hidden_size, weights.width, [&](const Group& group, int64_t chunk) {
      Down<T>(cpu, weights, group, chunk, out.as<T>());
    });
  });
}

template <typename T>
void FfnRunner::GateUp(const Cpu& cpu, const FfnWeights& weights, const Group& group,
                       int64_t chunk) {
  const int64_t hidden_size = weights.hidden_size;
  const T* gate =
      static_cast<const T*>(weights.gate_up) + group.expert * 2 * weights.width * hidden_size;
  const T* up = gate + weights.width * hidden_size;
  ForEachBlock(group.begin, group.end, chunk, weights.width, [&](DotBlock& gates) {
    DotBlock ups;
    ups.first_token = gates.first_token;
    ups.num_tokens = gates.num_tokens;
    ups.first_row = gates.first_row;
    ups.num_rows = gates.num_rows;
    MultiplyBlock(cpu, x_.data(), gate, hidden_size, gates);
    MultiplyBlock(cpu, x_.data(), up, hidden_size, ups);
    RunKernel<SwiGlu>(cpu.isa, {.gate = gates.values,
                                .up = ups.values,
                                .n = gates.num_tokens * DotBlock::kStride,
                                .activation = gates.values});
    for (int64_t t = 0; t < gates.num_tokens; ++t) {
      float* row = activations_[gates.first_token + t] + gates.first_row;
      for (int64_t r = 0; r < gates.num_rows; ++r) {
        T rounded;
        Round(gates.values[t * DotBlock::kStride + r], rounded);
        row[r] = ToFloat(rounded);
      }
    }
  });
}

template <typename T>
void FfnRunner::Down(const Cpu& cpu, const FfnWeights& weights, const Group& group, int64_t chunk,
                     T* out) {
  const T* down =
      static_cast<const T*>(weights.down) + group.expert * weights.hidden_size * weights.width;
  ForEachBlock(group.begin, group.end, chunk, weights.hidden_size, [&](DotBlock& block) {
    MultiplyBlock(cpu, activations_.data(), down, weights.width, block);
    for (int64_t t = 0; t < block.num_tokens; ++t) {
      T* row = out + out_rows_[block.first_token + t] * weights.hidden_size + block.first_row;
      for (int64_t r = 0; r < block.num_rows; ++r) {
        Round(block.values[t * DotBlock::kStride + r], row[r]);
      }
    }
  });
}

}  // namespace shoal
