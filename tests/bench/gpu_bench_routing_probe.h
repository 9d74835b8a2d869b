// RoutingProbe: Ops that can tell which experts the tokens of a forward pass went to.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"

namespace shoal::bench {

/// Passes every call on. Thread: that of the ops.
class RoutingProbe final : public Ops {
 public:
  RoutingProbe(std::unique_ptr<Ops> ops, Device* device) : ops_(std::move(ops)), device_(device) {}

  /// The expert ids [num_tokens * num_routes] of each MoE layer that `enqueue` runs.
  template <typename Enqueue>
  std::vector<std::vector<int32_t>> Routes(const Enqueue& enqueue) {
    routes_.clear();
    is_watching_ = true;
    enqueue();
    is_watching_ = false;
    return std::move(routes_);
  }

  absl::Status CheckModel(const ModelSizes& sizes) const override {
    return ops_->CheckModel(sizes);
  }
  void Embed(const Tensor& token_ids, const Weight& table, const Tensor& out) override {
    ops_->Embed(token_ids, table, out);
  }
  void AddRmsNorm(const Tensor& delta, const Tensor& residual, const Norm& norm,
                  const Tensor& out) override {
    ops_->AddRmsNorm(delta, residual, norm, out);
  }
  void AddRmsNormRoute(const Tensor& delta, const Tensor& residual, const Norm& norm,
                       const Router& router, const Tensor& out, const Routing& routing) override {
    ops_->AddRmsNormRoute(delta, residual, norm, router, out, routing);
  }
  void Linear(const Tensor& x, const Weight& weight, const Tensor& bias,
              const Tensor& out) override {
    ops_->Linear(x, weight, bias, out);
  }
  void RopeAndWriteKv(const Tensor& qkv, const Tensor& rope_table, const AttentionMeta& meta,
                      const AttentionShape& shape, const Tensor& kv) override {
    ops_->RopeAndWriteKv(qkv, rope_table, meta, shape, kv);
  }
  void PagedAttention(const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
                      const AttentionShape& shape, const Tensor& out) override {
    ops_->PagedAttention(qkv, kv, meta, shape, out);
  }
  void DenseFfn(const Tensor& x, const FfnWeights& weights, const Tensor& out) override {
    ops_->DenseFfn(x, weights, out);
  }
  void ExpertFfn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                 const Tensor& rows) override {
    if (is_watching_) Note(expert_ids);
    ops_->ExpertFfn(x, expert_ids, experts, rows);
  }
  void Combine(const Tensor& rows, const Routing& routing, const Tensor& residual, const Norm& norm,
               const Tensor& out) override {
    ops_->Combine(rows, routing, residual, norm, out);
  }
  void GatherRows(const Tensor& x, const Tensor& row_ids, const Tensor& out) override {
    ops_->GatherRows(x, row_ids, out);
  }
  void MapIds(const Tensor& ids, const Tensor& table, const Tensor& out) override {
    ops_->MapIds(ids, table, out);
  }
  void CopyBlocks(const Tensor& kv, const Tensor& copies) override { ops_->CopyBlocks(kv, copies); }
  void ResolveTokens(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                     const Tensor& history) override {
    ops_->ResolveTokens(token_ids, slots, positions, history);
  }
  void Sample(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) override {
    ops_->Sample(logits, inputs, out);
  }
  void FillNormal(const Tensor& out, uint64_t seed, float stddev) override {
    ops_->FillNormal(out, seed, stddev);
  }

 private:
  void Note(const Tensor& expert_ids) {
    std::vector<int32_t>& ids = routes_.emplace_back(expert_ids.num_elements());
    device_->CopyToHost(expert_ids, ids.data());
    const absl::Status status = device_->Synchronize();
    SHOAL_CHECK(status.ok(), "{}", status.ToString());
  }

  const std::unique_ptr<Ops> ops_;
  Device* const device_;
  bool is_watching_ = false;
  std::vector<std::vector<int32_t>> routes_;
};

}  // namespace shoal::bench
