// CpuOps: the stages of the forward pass on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/ffn.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/sampling.h"
#include "kernels/ops.h"

namespace shoal {

/// Checks shapes and shares the rows of each stage among the threads. Every op is done when it
/// returns. Each row is computed in an order of its own, so results depend on neither the number of
/// threads nor the other rows.
class CpuOps final : public Ops {
 public:
  /// `isa` must be one that this machine has. Working memory is added to `used`.
  CpuOps(std::shared_ptr<ThreadPool> pool, Isa isa, std::shared_ptr<UsedBytes> used);

  absl::Status CheckModel(const ModelSizes&) const override { return absl::OkStatus(); }

  void Embed(const Tensor& token_ids, const Weight& table, const Tensor& out) override;
  void AddRmsNorm(const Tensor& delta, const Tensor& residual, const Norm& norm,
                  const Tensor& out) override;
  void AddRmsNormRoute(const Tensor& delta, const Tensor& residual, const Norm& norm,
                       const Router& router, const Tensor& out, const Routing& routing) override;
  void Linear(const Tensor& x, const Weight& weight, const Tensor& bias,
              const Tensor& out) override;
  void RopeAndWriteKv(const Tensor& qkv, const Tensor& rope_table, const AttentionMeta& meta,
                      const AttentionShape& shape, const Tensor& kv) override;
  void PagedAttention(const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
                      const AttentionShape& shape, const Tensor& out) override;
  void DenseFfn(const Tensor& x, const FfnWeights& weights, const Tensor& out) override;
  void ExpertFfn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                 const Tensor& rows) override;
  void Combine(const Tensor& rows, const Routing& routing, const Tensor& residual, const Norm& norm,
               const Tensor& out) override;
  void GatherRows(const Tensor& x, const Tensor& row_ids, const Tensor& out) override;
  void MapIds(const Tensor& ids, const Tensor& table, const Tensor& out) override;
  void CopyBlocks(const Tensor& kv, const Tensor& copies) override;
  void ResolveTokens(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                     const Tensor& history) override;
  void Sample(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) override;
  void FillNormal(const Tensor& out, uint64_t seed, float stddev) override;

 private:
  const std::shared_ptr<ThreadPool> pool_;
  const std::shared_ptr<UsedBytes> used_;
  Cpu cpu_;
  FloatRows float_rows_;
  Scratch<float> router_logits_;
  AttentionRunner attention_;
  FfnRunner ffn_;
  std::vector<RowSampler> samplers_;  // one per thread
};

}  // namespace shoal
