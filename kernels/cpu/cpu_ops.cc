#include "kernels/cpu/cpu_ops.h"

#include <utility>

#include "kernels/cpu/copy.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/random.h"
#include "kernels/cpu/routing.h"

namespace shoal {
namespace {

bool IsActivation(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kBFloat16; }

/// CHECKs dtype and shape; -1 stands for any size.
void CheckShape(const char* name, const Tensor& tensor, DType dtype,
                std::initializer_list<int64_t> shape) {
  bool matches = tensor.dtype == dtype && tensor.rank == static_cast<int>(shape.size());
  for (int i = 0; matches && i < tensor.rank; ++i) {
    const int64_t size = shape.begin()[i];
    matches = size == -1 || tensor.shape[i] == size;
  }
  SHOAL_CHECK(matches, "{} is {} [{}], not {} [{}]", name, Name(tensor.dtype),
              fmt::join(std::span(tensor.shape.data(), tensor.rank), ", "), Name(dtype),
              fmt::join(shape, ", "));
}

void CheckWeight(const char* name, const Tensor& x, DType dtype, int64_t in_features) {
  SHOAL_CHECK(x.rank == 2 && IsActivation(x.dtype) && x.dtype == dtype && x.shape[1] == in_features,
              "{} is {} with {} columns, x is {} with {}", name, Name(dtype), in_features,
              Name(x.dtype), x.shape[1]);
}

void CheckRows(const char* name, const Tensor& rows, const Tensor& residual) {
  CheckShape(name, rows, residual.dtype, {residual.shape[0], residual.shape[1]});
}

void CheckNorm(const Tensor& residual, const Norm& norm, const Tensor& out) {
  SHOAL_CHECK(residual.rank == 2 && IsActivation(residual.dtype), "residual is {} of rank {}",
              Name(residual.dtype), residual.rank);
  CheckShape("norm", norm.weight, residual.dtype, {residual.shape[1]});
  CheckRows("out", out, residual);
}

/// Returns the number of routes.
int64_t CheckRouting(const Routing& routing, int64_t num_tokens) {
  CheckShape("expert_ids", routing.expert_ids, DType::kInt32, {num_tokens, -1});
  const int64_t num_routes = routing.expert_ids.shape[1];
  CheckShape("weights", routing.weights, DType::kFloat32, {num_tokens, num_routes});
  if (!routing.num_tokens.empty()) CheckShape("num_tokens", routing.num_tokens, DType::kInt32, {1});
  return num_routes;
}

void CheckAttention(const Tensor& qkv, const AttentionMeta& meta, const AttentionShape& shape,
                    const Tensor& kv) {
  const int64_t num_tokens = qkv.shape[0];
  const int64_t heads = shape.num_heads + int64_t{2} * shape.num_kv_heads;
  SHOAL_CHECK(IsActivation(qkv.dtype) && shape.num_kv_heads > 0 && shape.head_dim % 2 == 0 &&
                  shape.num_heads % shape.num_kv_heads == 0,
              "{} heads, {} key heads of {}, {}", shape.num_heads, shape.num_kv_heads,
              shape.head_dim, Name(qkv.dtype));
  CheckShape("qkv", qkv, qkv.dtype, {num_tokens, heads * shape.head_dim});
  CheckShape("kv", kv, qkv.dtype, {-1, 2, shape.num_kv_heads, -1, shape.head_dim});
  CheckShape("positions", meta.positions, DType::kInt32, {num_tokens});
}

void CheckSampling(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) {
  CheckShape("logits", logits, DType::kFloat32, {-1, -1});
  const int64_t num_rows = logits.shape[0], vocab = logits.shape[1];
  CheckShape("rows", inputs.rows, DType::kByte, {num_rows * int64_t{sizeof(SamplingRow)}});
  CheckShape("history", inputs.history, DType::kInt32, {-1, -1});
  if (!inputs.biases.empty()) CheckShape("biases", inputs.biases, DType::kByte, {-1});
  if (!inputs.masks.empty()) {
    CheckShape("masks", inputs.masks, DType::kInt32, {-1, (vocab + 31) / 32});
  }
  CheckShape("out", out, DType::kByte, {num_rows * int64_t{sizeof(SampledRow)}});
}

}  // namespace

CpuOps::CpuOps(std::shared_ptr<ThreadPool> pool, Isa isa, std::shared_ptr<UsedBytes> used)
    : pool_(std::move(pool)),
      used_(std::move(used)),
      cpu_(pool_.get(), isa, used_.get()),
      float_rows_(used_.get()),
      router_logits_(used_.get()),
      ffn_(used_.get()) {
  for (int i = 0; i < pool_->num_threads(); ++i) samplers_.emplace_back(used_.get());
}

void CpuOps::Embed(const Tensor& token_ids, const Weight& table, const Tensor& out) {
  CheckShape("token_ids", token_ids, DType::kInt32, {-1});
  CheckShape("out", out, table.dtype, {token_ids.shape[0], table.in_features});
  CopyRows(cpu_, table.data, table.out_features, token_ids, out);
}

void CpuOps::GatherRows(const Tensor& x, const Tensor& row_ids, const Tensor& out) {
  CheckShape("row_ids", row_ids, DType::kInt32, {-1});
  CheckShape("out", out, x.dtype, {row_ids.shape[0], x.shape[1]});
  CopyRows(cpu_, x.data, x.shape[0], row_ids, out);
}

void CpuOps::AddRmsNorm(const Tensor& delta, const Tensor& residual, const Norm& norm,
                        const Tensor& out) {
  if (!delta.empty()) CheckRows("delta", delta, residual);
  CheckNorm(residual, norm, out);
  AddRmsNormRows(cpu_, delta, residual, norm, out);
}

void CpuOps::AddRmsNormRoute(const Tensor& delta, const Tensor& residual, const Norm& norm,
                             const Router& router, const Tensor& out, const Routing& routing) {
  AddRmsNorm(delta, residual, norm, out);
  CheckWeight("router", out, router.weight.dtype, router.weight.in_features);
  const int64_t num_tokens = out.shape[0], num_experts = router.weight.out_features;
  const int64_t num_routes = CheckRouting(routing, num_tokens);
  SHOAL_CHECK(router.num_shared < num_routes && num_routes <= num_experts + router.num_shared,
              "{} routes to {} experts and {} shared ones", num_routes, num_experts,
              router.num_shared);
  float* values = router_logits_.Reserve(num_tokens * num_experts);
  const Tensor logits(values, DType::kFloat32, {num_tokens, num_experts});
  MultiplyRows(cpu_, float_rows_.Widen(out, *pool_), router.weight, {}, logits);
  RouteRows(cpu_, values, router, routing);
}

void CpuOps::Linear(const Tensor& x, const Weight& weight, const Tensor& bias, const Tensor& out) {
  CheckWeight("weight", x, weight.dtype, weight.in_features);
  SHOAL_CHECK(out.dtype == x.dtype || out.dtype == DType::kFloat32, "out is {}, x {}",
              Name(out.dtype), Name(x.dtype));
  CheckShape("out", out, out.dtype, {x.shape[0], -1});
  SHOAL_CHECK(out.shape[1] <= weight.out_features, "{} columns of a weight with {} rows",
              out.shape[1], weight.out_features);
  if (!bias.empty()) CheckShape("bias", bias, x.dtype, {out.shape[1]});
  MultiplyRows(cpu_, float_rows_.Widen(x, *pool_), weight, bias, out);
}

void CpuOps::RopeAndWriteKv(const Tensor& qkv, const Tensor& rope_table, const AttentionMeta& meta,
                            const AttentionShape& shape, const Tensor& kv) {
  CheckAttention(qkv, meta, shape, kv);
  CheckShape("rope_table", rope_table, DType::kFloat32, {-1, shape.head_dim / 2, 2});
  CheckShape("slot_mapping", meta.slot_mapping, DType::kInt32, {qkv.shape[0]});
  RopeAndWriteKvRows(cpu_, qkv, rope_table, meta, shape, kv);
}

void CpuOps::PagedAttention(const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
                            const AttentionShape& shape, const Tensor& out) {
  CheckAttention(qkv, meta, shape, kv);
  CheckShape("cu_seqlens", meta.cu_seqlens, DType::kInt32, {-1});
  CheckShape("block_tables", meta.block_tables, DType::kInt32, {meta.cu_seqlens.shape[0] - 1, -1});
  CheckShape("out", out, qkv.dtype, {qkv.shape[0], int64_t{shape.num_heads} * shape.head_dim});
  attention_.Run(cpu_, qkv, kv, meta, shape, out);
}

void CpuOps::DenseFfn(const Tensor& x, const FfnWeights& weights, const Tensor& out) {
  CheckWeight("weights", x, weights.dtype, weights.hidden_size);
  CheckShape("out", out, x.dtype, {x.shape[0], x.shape[1]});
  SHOAL_CHECK(weights.num_experts == 1, "{} experts", weights.num_experts);
  ffn_.RunDense(cpu_, x, weights, out);
}

void CpuOps::ExpertFfn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                       const Tensor& rows) {
  CheckWeight("experts", x, experts.weights.dtype, experts.weights.hidden_size);
  CheckShape("expert_ids", expert_ids, DType::kInt32, {x.shape[0], -1});
  CheckShape("rows", rows, x.dtype, {x.shape[0], expert_ids.shape[1], x.shape[1]});
  ffn_.RunRouted(cpu_, x, expert_ids, experts, rows);
}

void CpuOps::Combine(const Tensor& rows, const Routing& routing, const Tensor& residual,
                     const Norm& norm, const Tensor& out) {
  const int64_t num_tokens = residual.shape[0];
  const int64_t num_routes = CheckRouting(routing, num_tokens);
  CheckShape("rows", rows, residual.dtype, {num_tokens, num_routes, residual.shape[1]});
  CheckNorm(residual, norm, out);
  CombineRows(cpu_, rows, routing, residual, norm, out);
}

void CpuOps::MapIds(const Tensor& ids, const Tensor& table, const Tensor& out) {
  CheckShape("table", table, DType::kInt32, {-1});
  SHOAL_CHECK(ids.dtype == DType::kInt32 && out.dtype == DType::kInt32 && ids.rank == out.rank &&
                  ids.shape == out.shape,
              "ids are {} of rank {}, out {} of rank {}, or their shapes differ", Name(ids.dtype),
              ids.rank, Name(out.dtype), out.rank);
  MapIdsByTable(cpu_, ids, table, out);
}

void CpuOps::CopyBlocks(const Tensor& kv, const Tensor& copies) {
  CheckShape("kv", kv, kv.dtype, {-1, 2, -1, -1, -1});
  CheckShape("copies", copies, DType::kByte, {-1});
  CopyKvBlocks(cpu_, kv, copies);
}

void CpuOps::ResolveTokens(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                           const Tensor& history) {
  CheckShape("token_ids", token_ids, DType::kInt32, {-1});
  CheckShape("slots", slots, DType::kInt32, {token_ids.shape[0]});
  CheckShape("positions", positions, DType::kInt32, {token_ids.shape[0]});
  CheckShape("history", history, DType::kInt32, {-1, -1});
  ResolveTokensByHistory(token_ids, slots, positions, history);
}

void CpuOps::Sample(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) {
  CheckSampling(logits, inputs, out);
  const int64_t num_rows = logits.shape[0], vocab = logits.shape[1];
  for (RowSampler& sampler : samplers_) sampler.Reserve(vocab);
  pool_->ParallelFor(num_rows, GrainFor(vocab), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const SamplingRow& row = inputs.rows.as<const SamplingRow>()[i];
      SampledRow& sampled = out.as<SampledRow>()[i];
      sampled = samplers_[thread].Sample(cpu_.isa, logits.as<const float>() + i * vocab, vocab, row,
                                         inputs);
      if (row.recorded) HistoryEntry(inputs.history, row.slot, row.position) = sampled.token_id;
    }
  });
}

void CpuOps::FillNormal(const Tensor& out, uint64_t seed, float stddev) {
  SHOAL_CHECK(IsActivation(out.dtype), "out is {}", Name(out.dtype));
  FillWithNormals(cpu_, out, seed, stddev);
}

}  // namespace shoal
