#include "kernels/cuda/cuda_ops.h"

#include <utility>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/copy.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/random.h"
#include "kernels/cuda/sampling.h"

namespace shoal::cuda {
namespace {

// What the kernels are written for.
constexpr int64_t kRowMultiple = 8;
constexpr int64_t kMaxHiddenSize = 16384;
constexpr int kHeadDimMultiple = 16;
constexpr int kMaxHeadDim = 256;
constexpr int64_t kMaxRouterExperts = 256;
constexpr int64_t kMaxRoutes = 32;
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kBlockBytesMultiple = 16;

absl::Status CheckMultiple(const char* field, int64_t value, int64_t divisor) {
  if (value % divisor == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected a multiple of {} on a CUDA device", field, value, divisor));
}

absl::Status CheckAtMost(const char* field, int64_t value, int64_t most) {
  if (value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected at most {} on a CUDA device", field, value, most));
}

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

/// Rows of activations that the kernels can read.
void CheckRows(const char* name, const Tensor& rows) {
  CheckShape(name, rows, DType::kBFloat16, {-1, -1});
  SHOAL_CHECK(rows.shape[1] % kRowMultiple == 0, "{} has rows of {} elements, no multiple of {}",
              name, rows.shape[1], kRowMultiple);
}

void CheckWeight(const char* name, const Tensor& x, DType dtype, int64_t in_features) {
  CheckRows("x", x);
  SHOAL_CHECK(x.dtype == dtype && x.shape[1] == in_features, "{} is {} with {} columns, x has {}",
              name, Name(dtype), in_features, x.shape[1]);
}

void CheckNorm(const Tensor& residual, const Norm& norm, const Tensor& out) {
  CheckRows("residual", residual);
  SHOAL_CHECK(residual.shape[1] <= kMaxHiddenSize, "hidden size {}, at most {}", residual.shape[1],
              kMaxHiddenSize);
  CheckShape("norm", norm.weight, residual.dtype, {residual.shape[1]});
  CheckShape("out", out, residual.dtype, {residual.shape[0], residual.shape[1]});
}

/// `delta` may be empty.
void CheckDelta(const Tensor& delta, const Tensor& residual) {
  if (delta.empty()) return;
  CheckShape("delta", delta, residual.dtype, {residual.shape[0], residual.shape[1]});
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
  SHOAL_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
              "{} heads, {} key heads", shape.num_heads, shape.num_kv_heads);
  SHOAL_CHECK(shape.head_dim % kHeadDimMultiple == 0 && shape.head_dim <= kMaxHeadDim,
              "head_dim is {}, no multiple of {} up to {}", shape.head_dim, kHeadDimMultiple,
              kMaxHeadDim);
  CheckShape("qkv", qkv, DType::kBFloat16, {num_tokens, heads * shape.head_dim});
  CheckShape("kv", kv, DType::kBFloat16, {-1, 2, shape.num_kv_heads, -1, shape.head_dim});
  CheckShape("positions", meta.positions, DType::kInt32, {num_tokens});
}

void CheckSampling(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) {
  CheckShape("logits", logits, DType::kFloat32, {-1, -1});
  const int64_t num_rows = logits.shape[0], vocab = logits.shape[1];
  SHOAL_CHECK(vocab <= kMaxVocab, "{} tokens to choose among, at most {}", vocab, kMaxVocab);
  CheckShape("rows", inputs.rows, DType::kByte, {num_rows * int64_t{sizeof(SamplingRow)}});
  CheckShape("history", inputs.history, DType::kInt32, {-1, -1});
  if (!inputs.biases.empty()) CheckShape("biases", inputs.biases, DType::kByte, {-1});
  if (!inputs.masks.empty()) {
    CheckShape("masks", inputs.masks, DType::kInt32, {-1, (vocab + 31) / 32});
  }
  CheckShape("out", out, DType::kByte, {num_rows * int64_t{sizeof(SampledRow)}});
}

NormArgs NormArgsFor(const Tensor& residual, const Norm& norm, const Tensor& out) {
  return {.residual = residual.as<BFloat16>(),
          .weight = norm.weight.as<const BFloat16>(),
          .epsilon = norm.epsilon,
          .out = out.as<BFloat16>(),
          .num_tokens = residual.shape[0],
          .hidden_size = residual.shape[1]};
}

RoutingArgs RoutingArgsFor(const Routing& routing) {
  return {.expert_ids = routing.expert_ids.as<int32_t>(),
          .weights = routing.weights.as<float>(),
          .num_real_tokens = routing.num_tokens.as<const int32_t>(),
          .num_routes = static_cast<int>(routing.expert_ids.shape[1])};
}

/// Without the sequences, which only attention reads.
AttentionArgs AttentionArgsFor(const Tensor& qkv, const AttentionMeta& meta,
                               const AttentionShape& shape, const Tensor& kv) {
  return {.num_heads = shape.num_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .block_size = static_cast<int>(kv.shape[3]),
          .num_tokens = qkv.shape[0],
          .positions = meta.positions.as<const int32_t>(),
          .qkv = qkv.as<BFloat16>(),
          .kv = kv.as<BFloat16>()};
}

}  // namespace

CudaOps::CudaOps(std::shared_ptr<CudaStream> stream, const std::shared_ptr<DeviceMemory>& memory)
    : stream_(std::move(stream)),
      workspace_(stream_, memory, Contents::kAny),
      attention_counters_(stream_, memory, Contents::kZeros) {}

absl::Status CudaOps::CheckModel(const ModelSizes& sizes) const {
  if (sizes.dtype != DType::kBFloat16) {
    return absl::InvalidArgumentError(
        fmt::format("dtype is {}, expected bfloat16 on a CUDA device", Name(sizes.dtype)));
  }
  constexpr const char* kHeadDim = "hidden_size / num_attention_heads";
  RETURN_IF_ERROR(CheckMultiple(kHeadDim, sizes.head_dim, kHeadDimMultiple));
  RETURN_IF_ERROR(CheckAtMost(kHeadDim, sizes.head_dim, kMaxHeadDim));
  RETURN_IF_ERROR(CheckMultiple("hidden_size", sizes.hidden_size, kRowMultiple));
  RETURN_IF_ERROR(CheckAtMost("hidden_size", sizes.hidden_size, kMaxHiddenSize));
  RETURN_IF_ERROR(CheckMultiple("intermediate_size", sizes.intermediate_size, kRowMultiple));
  RETURN_IF_ERROR(
      CheckMultiple("moe_intermediate_size", sizes.moe_intermediate_size, kRowMultiple));
  RETURN_IF_ERROR(CheckAtMost("n_routed_experts", sizes.n_routed_experts, kMaxRouterExperts));
  RETURN_IF_ERROR(
      CheckAtMost("num_experts_per_tok + n_shared_experts", sizes.num_routes, kMaxRoutes));
  return CheckAtMost("vocab_size", sizes.vocab_size, kMaxVocab);
}

/// Calls `launch` unless the stream has failed; it fails if that did not enqueue.
template <typename Launch>
void CudaOps::Enqueue(const char* op, const Launch& launch) {
  if (!stream_->status().ok()) return;
  launch(stream_->get());
  stream_->Check(cudaGetLastError(), op);
}

void CudaOps::Gather(const void* table, const Tensor& row_ids, const Tensor& out) {
  CheckShape("row_ids", row_ids, DType::kInt32, {-1});
  CheckRows("out", out);
  CheckShape("out", out, DType::kBFloat16, {row_ids.shape[0], -1});
  const GatherArgs args = {.table = static_cast<const BFloat16*>(table),
                           .row_ids = row_ids.as<const int32_t>(),
                           .out = out.as<BFloat16>(),
                           .num_rows = row_ids.shape[0],
                           .row_size = out.shape[1]};
  if (args.num_rows == 0) return;
  Enqueue("GatherRows", [&](cudaStream_t stream) { cuda::GatherRows(args, stream); });
}

void CudaOps::Embed(const Tensor& token_ids, const Weight& table, const Tensor& out) {
  CheckShape("out", out, table.dtype, {-1, table.in_features});
  Gather(table.data, token_ids, out);
}

void CudaOps::GatherRows(const Tensor& x, const Tensor& row_ids, const Tensor& out) {
  CheckShape("out", out, x.dtype, {-1, x.shape[1]});
  Gather(x.data, row_ids, out);
}

void CudaOps::AddRmsNorm(const Tensor& delta, const Tensor& residual, const Norm& norm,
                         const Tensor& out) {
  CheckNorm(residual, norm, out);
  CheckDelta(delta, residual);
  if (residual.shape[0] == 0) return;
  Enqueue("AddRmsNorm", [&](cudaStream_t stream) {
    cuda::AddRmsNorm(NormArgsFor(residual, norm, out), delta.as<const BFloat16>(), stream);
  });
}

void CudaOps::AddRmsNormRoute(const Tensor& delta, const Tensor& residual, const Norm& norm,
                              const Router& router, const Tensor& out, const Routing& routing) {
  CheckNorm(residual, norm, out);
  CheckDelta(delta, residual);
  CheckWeight("router", out, router.weight.dtype, router.weight.in_features);
  const int64_t num_tokens = out.shape[0], num_experts = router.weight.out_features;
  const int64_t num_routes = CheckRouting(routing, num_tokens);
  SHOAL_CHECK(num_experts <= kMaxRouterExperts && num_routes <= kMaxRoutes &&
                  router.num_shared < num_routes && num_routes <= num_experts + router.num_shared,
              "{} routes (at most {}) to {} experts (at most {}) and {} shared ones", num_routes,
              kMaxRoutes, num_experts, kMaxRouterExperts, router.num_shared);
  if (num_tokens == 0) return;
  const RouterArgs args = {.weight = static_cast<const BFloat16*>(router.weight.data),
                           .num_experts = static_cast<int>(num_experts),
                           .num_shared = router.num_shared,
                           .renormalize = router.renormalize};
  Enqueue("AddRmsNormRoute", [&](cudaStream_t stream) {
    cuda::AddRmsNormRoute(NormArgsFor(residual, norm, out), delta.as<const BFloat16>(), args,
                          RoutingArgsFor(routing), stream);
  });
}

void CudaOps::Linear(const Tensor& x, const Weight& weight, const Tensor& bias, const Tensor& out) {
  CheckWeight("weight", x, weight.dtype, weight.in_features);
  SHOAL_CHECK(out.dtype == x.dtype || out.dtype == DType::kFloat32, "out is {}, x {}",
              Name(out.dtype), Name(x.dtype));
  CheckShape("out", out, out.dtype, {x.shape[0], -1});
  SHOAL_CHECK(out.shape[1] <= weight.out_features, "{} columns of a weight with {} rows",
              out.shape[1], weight.out_features);
  if (!bias.empty()) CheckShape("bias", bias, x.dtype, {out.shape[1]});
  if (out.num_elements() == 0) return;
  const LinearArgs args = {.x = x.as<const BFloat16>(),
                           .weight = static_cast<const BFloat16*>(weight.data),
                           .bias = bias.as<const BFloat16>(),
                           .out = out.data,
                           .float_out = out.dtype == DType::kFloat32,
                           .num_tokens = x.shape[0],
                           .in_features = x.shape[1],
                           .num_outputs = out.shape[1]};
  Enqueue("Linear", [&](cudaStream_t stream) { cuda::Linear(args, stream); });
}

void CudaOps::RopeAndWriteKv(const Tensor& qkv, const Tensor& rope_table, const AttentionMeta& meta,
                             const AttentionShape& shape, const Tensor& kv) {
  CheckAttention(qkv, meta, shape, kv);
  CheckShape("rope_table", rope_table, DType::kFloat32, {-1, shape.head_dim / 2, 2});
  CheckShape("slot_mapping", meta.slot_mapping, DType::kInt32, {qkv.shape[0]});
  if (qkv.shape[0] == 0) return;
  AttentionArgs args = AttentionArgsFor(qkv, meta, shape, kv);
  args.slot_mapping = meta.slot_mapping.as<const int32_t>();
  Enqueue("RopeAndWriteKv", [&](cudaStream_t stream) {
    cuda::RopeAndWriteKv(args, rope_table.as<const float>(), stream);
  });
}

void CudaOps::PagedAttention(const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
                             const AttentionShape& shape, const Tensor& out) {
  CheckAttention(qkv, meta, shape, kv);
  CheckShape("cu_seqlens", meta.cu_seqlens, DType::kInt32, {-1});
  CheckShape("block_tables", meta.block_tables, DType::kInt32, {meta.cu_seqlens.shape[0] - 1, -1});
  CheckShape("out", out, qkv.dtype, {qkv.shape[0], int64_t{shape.num_heads} * shape.head_dim});
  AttentionArgs args = AttentionArgsFor(qkv, meta, shape, kv);
  args.num_sequences = meta.block_tables.shape[0];
  args.max_blocks = meta.block_tables.shape[1];
  args.max_query_len = meta.max_query_len;
  args.max_context_len = meta.max_context_len;
  args.cu_seqlens = meta.cu_seqlens.as<const int32_t>();
  args.block_tables = meta.block_tables.as<const int32_t>();
  void* const workspace = workspace_.Reserve(AttentionWorkspaceBytes(args));
  args.counters = static_cast<int32_t*>(attention_counters_.Reserve(AttentionCounterBytes(args)));
  if (args.num_tokens == 0 || args.num_sequences == 0 || args.max_query_len == 0) return;
  Enqueue("PagedAttention", [&](cudaStream_t stream) {
    cuda::PagedAttention(args, workspace, out.as<BFloat16>(), stream);
  });
}

/// `expert_ids` empty: every token goes to the one expert.
void CudaOps::Ffn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                  const Tensor& rows) {
  const FfnWeights& weights = experts.weights;
  CheckWeight("weights", x, weights.dtype, weights.hidden_size);
  FfnArgs args = {.shape = {.num_experts = weights.num_experts,
                            .hidden_size = weights.hidden_size,
                            .width = weights.width},
                  .gate_up = static_cast<const BFloat16*>(weights.gate_up),
                  .down = static_cast<const BFloat16*>(weights.down),
                  .x = x.as<const BFloat16>(),
                  .expert_ids = expert_ids.as<const int32_t>(),
                  .first_expert = experts.first_expert,
                  .num_tokens = x.shape[0],
                  .num_routes = expert_ids.rank > 0 ? expert_ids.shape[1] : 1,
                  .rows = rows.as<BFloat16>()};
  const int64_t num_rows = args.num_tokens * args.num_routes;
  if (num_rows == 0) return;
  args.workspace = workspace_.Reserve(FfnWorkspaceBytes(args.shape, num_rows));
  Enqueue("Ffn", [&](cudaStream_t stream) { cuda::Ffn(args, stream); });
}

void CudaOps::DenseFfn(const Tensor& x, const FfnWeights& weights, const Tensor& out) {
  CheckShape("out", out, x.dtype, {x.shape[0], x.shape[1]});
  SHOAL_CHECK(weights.num_experts == 1, "{} experts", weights.num_experts);
  Ffn(x, {}, {.weights = weights}, out);
}

void CudaOps::ExpertFfn(const Tensor& x, const Tensor& expert_ids, const LocalExperts& experts,
                        const Tensor& rows) {
  CheckShape("expert_ids", expert_ids, DType::kInt32, {x.shape[0], -1});
  CheckShape("rows", rows, x.dtype, {x.shape[0], expert_ids.shape[1], x.shape[1]});
  Ffn(x, expert_ids, experts, rows);
}

void CudaOps::Combine(const Tensor& rows, const Routing& routing, const Tensor& residual,
                      const Norm& norm, const Tensor& out) {
  const int64_t num_tokens = residual.shape[0];
  const int64_t num_routes = CheckRouting(routing, num_tokens);
  CheckShape("rows", rows, residual.dtype, {num_tokens, num_routes, residual.shape[1]});
  CheckNorm(residual, norm, out);
  if (num_tokens == 0) return;
  Enqueue("Combine", [&](cudaStream_t stream) {
    cuda::Combine(NormArgsFor(residual, norm, out), rows.as<const BFloat16>(),
                  RoutingArgsFor(routing), stream);
  });
}

void CudaOps::MapIds(const Tensor& ids, const Tensor& table, const Tensor& out) {
  CheckShape("table", table, DType::kInt32, {-1});
  SHOAL_CHECK(ids.dtype == DType::kInt32 && out.dtype == DType::kInt32 && ids.rank == out.rank &&
                  ids.shape == out.shape,
              "ids are {} of rank {}, out {} of rank {}, or their shapes differ", Name(ids.dtype),
              ids.rank, Name(out.dtype), out.rank);
  if (ids.num_elements() == 0) return;
  Enqueue("MapIds", [&](cudaStream_t stream) {
    cuda::MapIds(ids.as<const int32_t>(), table.as<const int32_t>(), out.as<int32_t>(),
                 ids.num_elements(), stream);
  });
}

void CudaOps::CopyBlocks(const Tensor& kv, const Tensor& copies) {
  CheckShape("kv", kv, DType::kBFloat16, {-1, 2, -1, -1, -1});
  CheckShape("copies", copies, DType::kByte, {-1});
  const int64_t num_copies = copies.size_bytes() / int64_t{sizeof(BlockCopy)};
  if (num_copies == 0) return;
  const int64_t block_bytes = kv.size_bytes() / kv.shape[0];
  SHOAL_CHECK(block_bytes % kBlockBytesMultiple == 0, "blocks of {} bytes, no multiple of {}",
              block_bytes, kBlockBytesMultiple);
  Enqueue("CopyBlocks", [&](cudaStream_t stream) {
    cuda::CopyBlocks(kv.data, copies.as<const BlockCopy>(), num_copies, block_bytes, stream);
  });
}

void CudaOps::ResolveTokens(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                            const Tensor& history) {
  CheckShape("token_ids", token_ids, DType::kInt32, {-1});
  CheckShape("slots", slots, DType::kInt32, {token_ids.shape[0]});
  CheckShape("positions", positions, DType::kInt32, {token_ids.shape[0]});
  CheckShape("history", history, DType::kInt32, {-1, -1});
  const ResolveArgs args = {.token_ids = token_ids.as<int32_t>(),
                            .slots = slots.as<const int32_t>(),
                            .positions = positions.as<const int32_t>(),
                            .history = history.as<int32_t>(),
                            .num_tokens = token_ids.shape[0],
                            .max_model_len = history.shape[1]};
  if (args.num_tokens == 0) return;
  Enqueue("ResolveTokens", [&](cudaStream_t stream) { cuda::ResolveTokens(args, stream); });
}

void CudaOps::Sample(const Tensor& logits, const SamplingInputs& inputs, const Tensor& out) {
  CheckSampling(logits, inputs, out);
  SampleArgs args = {.logits = logits.as<const float>(),
                     .rows = inputs.rows.as<const SamplingRow>(),
                     .history = inputs.history.as<int32_t>(),
                     .biases = inputs.biases.as<const LogitBias>(),
                     .masks = inputs.masks.as<const int32_t>(),
                     .out = out.as<SampledRow>(),
                     .num_rows = logits.shape[0],
                     .vocab = logits.shape[1],
                     .max_model_len = inputs.history.shape[1]};
  if (args.num_rows == 0) return;
  args.workspace = workspace_.Reserve(SampleWorkspaceBytes(args.num_rows, args.vocab));
  Enqueue("Sample", [&](cudaStream_t stream) { cuda::Sample(args, stream); });
}

void CudaOps::FillNormal(const Tensor& out, uint64_t seed, float stddev) {
  constexpr uintptr_t kAlignment = 16;
  SHOAL_CHECK(out.dtype == DType::kBFloat16 || out.dtype == DType::kFloat32, "out is {}",
              Name(out.dtype));
  SHOAL_CHECK(reinterpret_cast<uintptr_t>(out.data) % kAlignment == 0,
              "out is not aligned to {} bytes", kAlignment);
  if (out.num_elements() == 0) return;
  const FillNormalArgs args = {.out = out.data,
                               .float_out = out.dtype == DType::kFloat32,
                               .num_elements = out.num_elements(),
                               .seed = seed,
                               .stddev = stddev};
  Enqueue("FillNormal", [&](cudaStream_t stream) { cuda::FillNormal(args, stream); });
}

}  // namespace shoal::cuda
