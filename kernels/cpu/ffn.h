// Ffn: gated feed-forward networks, dense and routed.
#pragma once

#include <vector>

#include "kernels/cpu/linear.h"
#include "kernels/ops.h"

namespace shoal {

/// Runs each expert once over all of its rows: first every gate and up row, then every down row, in
/// (expert, chunk of rows) units. The activation is float32 and rounded once to the storage type.
class FfnRunner {
 public:
  explicit FfnRunner(UsedBytes* used) : float_rows_(used), activation_values_(used) {}

  /// Ops::DenseFfn, shapes already checked.
  void RunDense(Cpu& cpu, const Tensor& x, const FfnWeights& weights, const Tensor& out);

  /// Ops::ExpertFfn, shapes already checked.
  void RunRouted(Cpu& cpu, const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                 const Tensor& rows);

 private:
  /// Rows [begin, end) of the grouped order belong to one expert.
  struct Group {
    int64_t expert = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };

  void GroupByExpert(const float* const* x, const Tensor& expert_ids, const LocalExperts& experts);
  void RunGroups(Cpu& cpu, const FfnWeights& weights, const Tensor& out);
  template <typename T>
  void GateUp(Cpu& cpu, int thread, const FfnWeights& weights, const Group& group, int64_t chunk);
  template <typename T>
  void Down(Cpu& cpu, int thread, const FfnWeights& weights, const Group& group, int64_t chunk,
            T* out);

  FloatRows float_rows_;
  std::vector<Group> groups_;
  // One entry per row of the grouped order.
  std::vector<const float*> x_;
  std::vector<int64_t> out_rows_;
  std::vector<float*> activations_;  // [padded width] each
  std::vector<int64_t> counts_;      // per local expert
  Scratch<float> activation_values_;
};

}  // namespace shoal
