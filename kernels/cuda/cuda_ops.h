// CudaOps: the stages of the forward pass on a GPU.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/ops.h"

namespace shoal::cuda {

/// Checks shapes and calls the kernels, which CheckModel() knows the limits of. An op that fails
/// makes the stream fail, which a wait then says. Working memory is one piece for all ops, since
/// they run one after the other; it grows at the first sight of a larger shape, so that shape must
/// have been seen before it is recorded.
class CudaOps final : public Ops {
 public:
  /// Working memory is taken from `memory`.
  CudaOps(std::shared_ptr<CudaStream> stream, const std::shared_ptr<DeviceMemory>& memory);

  absl::Status CheckModel(const ModelSizes& sizes) const override;
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
  void Gather(const void* table, const Tensor& row_ids, const Tensor& out);
  void Ffn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
           const Tensor& rows);
  template <typename Launch>
  void Enqueue(const char* op, const Launch& launch);

  const std::shared_ptr<CudaStream> stream_;
  Workspace workspace_;
  Workspace attention_counters_;
};

}  // namespace shoal::cuda
