#include "engine/execution/model_runner.h"

#include <algorithm>
#include <string>
#include <utility>

namespace shoal {
namespace {

int64_t Vocab(const ModelRunnerConfig& config) {
  return config.vocab_limit > 0 ? config.vocab_limit : config.model.vocab_size;
}

DeepseekMoe::Limits ModelLimits(const ModelRunnerConfig& config) {
  return {.max_tokens = config.max_num_batched_tokens,
          .max_positions = config.kv_cache.max_model_len,
          .max_logits_rows = Sampler::MaxRows(config.kv_cache.max_num_seqs),
          .vocab_limit = Vocab(config)};
}

BatchBuilder::Limits BatchLimits(const ModelRunnerConfig& config) {
  const KvCacheConfig& cache = config.kv_cache;
  return {.max_tokens = config.max_num_batched_tokens,
          .max_sequences = std::min(cache.max_num_seqs, config.max_num_batched_tokens),
          .max_blocks = (cache.max_model_len + cache.block_size - 1) / cache.block_size,
          .block_size = cache.block_size};
}

Sampler::Limits SamplerLimits(const ModelRunnerConfig& config) {
  return {.max_rows = Sampler::MaxRows(config.kv_cache.max_num_seqs), .vocab = Vocab(config)};
}

/// What the KV cache can have of `free_bytes`: its tensors are rounded up, and a list of copies
/// comes with them.
int64_t BytesForBlocks(const ModelRunnerConfig& config, int64_t free_bytes) {
  constexpr int64_t kRounding = 4096;
  const int64_t block_bytes =
      config.kv_cache.block_size * KvBytesPerToken(config.model, config.dtype);
  const int64_t copies = free_bytes / block_bytes * int64_t{sizeof(BlockCopy)};
  return free_bytes - copies - (config.model.num_hidden_layers + 1) * kRounding;
}

}  // namespace

absl::Status ModelRunner::CheckModel(const ModelRunnerConfig& config, const Ops& ops) {
  const ModelConfig& model = config.model;
  ModelSizes sizes = {.dtype = config.dtype,
                      .vocab_size = Vocab(config),
                      .hidden_size = model.hidden_size,
                      .head_dim = model.head_dim()};
  for (int layer = 0; layer < model.num_hidden_layers; ++layer) {
    if (model.is_moe_layer(layer)) {
      sizes.moe_intermediate_size = model.moe_intermediate_size;
      sizes.n_routed_experts = model.n_routed_experts;
      sizes.num_routes = model.num_routes();
    } else {
      sizes.intermediate_size = model.intermediate_size;
    }
  }
  return ops.CheckModel(sizes);
}

absl::StatusOr<MemoryPlan> ModelRunner::PlanMemory(const ModelRunnerConfig& config,
                                                   const ExpertPlacement& placement, int rank,
                                                   int64_t free_bytes) {
  const int num_ranks = placement.num_ranks();
  const KvCacheConfig& cache = config.kv_cache;
  const int64_t bytes_per_token = KvBytesPerToken(config.model, config.dtype);
  MemoryPlan plan;
  plan.weight_bytes = WeightBytes(config.model, config.dtype, placement, rank);
  plan.activation_bytes =
      DeepseekMoe::DeviceBytes(config.model, config.dtype, ModelLimits(config), num_ranks) +
      BatchBuilder::DeviceBytes(BatchLimits(config)) + Sampler::DeviceBytes(SamplerLimits(config)) +
      cache.max_num_seqs * cache.max_model_len * SizeOf(DType::kInt32);
  const int64_t left_bytes = free_bytes - plan.weight_bytes - plan.activation_bytes;
  if (left_bytes < 0) {
    return absl::ResourceExhaustedError(fmt::format(
        "{} bytes are needed for weights and {} for activations, of which the device has {} free: "
        "lower max_num_batched_tokens, max_num_seqs or max_model_len, or take more ranks",
        plan.weight_bytes, plan.activation_bytes, free_bytes));
  }
  ASSIGN_OR_RETURN(plan.num_kv_blocks, ChooseNumBlocks(cache, num_ranks, bytes_per_token,
                                                       BytesForBlocks(config, left_bytes)));
  plan.kv_cache_bytes = plan.num_kv_blocks * cache.block_size * bytes_per_token;
  plan.left_bytes = left_bytes - plan.kv_cache_bytes;
  if (plan.left_bytes < 0) {
    return absl::ResourceExhaustedError(fmt::format(
        "a KV cache of {} bytes is asked for, and beside {} bytes of weights and {} of activations "
        "the device has {} left: lower kv_cache_memory_bytes",
        plan.kv_cache_bytes, plan.weight_bytes, plan.activation_bytes, left_bytes));
  }
  return plan;
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const ModelRunnerConfig& config,
                                                                 ModelWeights weights,
                                                                 Backend* backend) {
  const Device& device = *backend->device;
  std::unique_ptr<ModelRunner> runner(new ModelRunner(backend));
  MemoryPlan& plan = runner->memory_plan_;
  const int64_t free_at_start = device.FreeBytes();
  RETURN_IF_ERROR(runner->Allocate(config, std::move(weights)));
  RETURN_IF_ERROR(runner->WarmUp(config));
  const int64_t free_for_cache = device.FreeBytes();
  RETURN_IF_ERROR(runner->AllocateKvCache(config));
  RETURN_IF_ERROR(runner->RecordGraphs(config));
  plan.activation_bytes = free_at_start - free_for_cache;
  plan.num_kv_blocks = runner->num_kv_blocks();
  plan.left_bytes = device.FreeBytes();
  plan.kv_cache_bytes = free_for_cache - plan.left_bytes;
  return runner;
}

absl::Status ModelRunner::Allocate(const ModelRunnerConfig& config, ModelWeights weights) {
  Device& device = *backend_->device;
  const KvCacheConfig& cache = config.kv_cache;
  ASSIGN_OR_RETURN(model_, DeepseekMoe::Create(config.model, std::move(weights), config.dtype,
                                               ModelLimits(config), backend_));
  ASSIGN_OR_RETURN(batch_builder_, BatchBuilder::Create(BatchLimits(config), &device));
  ASSIGN_OR_RETURN(history_,
                   device.Allocate(DType::kInt32, {cache.max_num_seqs, cache.max_model_len}));
  ASSIGN_OR_RETURN(sampler_,
                   Sampler::Create(SamplerLimits(config), history_, model_.get(), backend_));
  return absl::OkStatus();
}

/// The ops take their working memory, so that the KV cache gets its share of what is left.
/// Attention has one padding token, over a block of its own.
absl::Status ModelRunner::WarmUp(const ModelRunnerConfig& config) {
  Device& device = *backend_->device;
  const AttentionShape heads = config.model.attention_shape();
  const int64_t num_heads = heads.num_heads, num_kv_heads = heads.num_kv_heads;
  const auto allocate = [&](std::initializer_list<int64_t> shape) {
    return device.Allocate(config.dtype, shape);
  };
  ASSIGN_OR_RETURN(const Tensor qkv,
                   allocate({1, (num_heads + 2 * num_kv_heads) * heads.head_dim}));
  ASSIGN_OR_RETURN(const Tensor out, allocate({1, num_heads * heads.head_dim}));
  ASSIGN_OR_RETURN(const Tensor block,
                   allocate({1, 2, num_kv_heads, config.kv_cache.block_size, heads.head_dim}));
  const BatchInputs padding = batch_builder_->Build({}, {.num_tokens = 1,
                                                         .num_sequences = 1,
                                                         .max_query_len = 1,
                                                         .max_context_len = 1,
                                                         .padded = true});
  backend_->ops->PagedAttention(qkv, block, padding.forward.attention, heads, out);
  model_->WarmUp();
  return sampler_->WarmUp();
}

absl::Status ModelRunner::AllocateKvCache(const ModelRunnerConfig& config) {
  Device& device = *backend_->device;
  const int64_t bytes_per_token = KvBytesPerToken(config.model, config.dtype);
  ASSIGN_OR_RETURN(const int32_t num_blocks,
                   ChooseNumBlocks(config.kv_cache, backend_->communicator->size(), bytes_per_token,
                                   BytesForBlocks(config, device.FreeBytes())));
  ASSIGN_OR_RETURN(kv_cache_, KvCache::Create(config.model, config.dtype,
                                              config.kv_cache.block_size, num_blocks, device));
  return absl::OkStatus();
}

/// All at the start: a step never waits for a recording, and what cannot be recorded is known
/// before the first request.
absl::Status ModelRunner::RecordGraphs(const ModelRunnerConfig& config) {
  if (config.enforce_eager || backend_->communicator->size() > 1) return absl::OkStatus();
  Device& device = *backend_->device;
  // A device that gains nothing by graphs says so before anything is run for them.
  ASSIGN_OR_RETURN(const std::unique_ptr<Graph> nothing, device.Record([] {}));
  if (nothing == nullptr) return absl::OkStatus();
  graphs_ = DecodeGraphs(std::min(BatchLimits(config).max_sequences, config.max_graph_sequences),
                         config.kv_cache.max_model_len);
  for (DecodeGraph& decode : graphs_.graphs()) {
    const BatchInputs padding = batch_builder_->Build({}, decode.shape);
    // The first run of a kernel may have to load it, which cannot be recorded.
    RunForward(padding);
    RETURN_IF_ERROR(device.Synchronize());
    ASSIGN_OR_RETURN(decode.graph, device.Record([&] { RunForward(padding); }));
  }
  return absl::OkStatus();
}

StepInFlight ModelRunner::Enqueue(ScheduledBatch scheduled) {
  StepInFlight step = {.batch = std::move(scheduled), .rows = {}};
  const ScheduledBatch& batch = step.batch;
  const auto rank = static_cast<size_t>(backend_->communicator->rank());
  SHOAL_CHECK(batch.rank_tokens.size() > rank && batch.rank_tokens[rank] == batch.num_tokens(),
              "rank_tokens does not know of the {} tokens of rank {}", batch.num_tokens(), rank);
  step.rows.resize(batch.logits_rows.size());
  WriteHistory(batch.history);
  kv_cache_.CopyBlocks(batch.block_copies, *backend_);
  // Without tokens of its own a rank still computes its experts for the others.
  if (std::ranges::any_of(batch.rank_tokens, [](int64_t count) { return count > 0; })) {
    EnqueueForward(batch);
    sampler_->Sample(batch, step.rows);
  }
  step.mark = backend_->device->Mark();
  return step;
}

absl::StatusOr<std::vector<SampledRow>> ModelRunner::Collect(StepInFlight step) {
  RETURN_IF_ERROR(backend_->device->Wait(step.mark));
  return std::move(step.rows);
}

void ModelRunner::WriteHistory(std::span<const HistoryTokens> history) {
  for (const HistoryTokens& tokens : history) {
    const int64_t count = std::ssize(tokens.token_ids);
    SHOAL_CHECK(count <= history_.shape[1], "a history of {} tokens, at most {} are possible",
                count, history_.shape[1]);
    const Tensor row(history_.Rows(tokens.slot, 1).data, DType::kInt32, {count});
    backend_->device->CopyFromHost(tokens.token_ids.data(), row);
  }
}

/// By a graph, if there is one for such a batch.
void ModelRunner::EnqueueForward(const ScheduledBatch& batch) {
  const BatchShape shape = BatchShape::Of(batch);
  const DecodeGraph* const decode = graphs_.Find(shape);
  const BatchInputs inputs =
      batch_builder_->Build(batch, decode == nullptr ? shape : decode->shape);
  if (decode == nullptr) {
    RunForward(inputs);
  } else {
    backend_->device->Replay(*decode->graph);
  }
}

void ModelRunner::RunForward(const BatchInputs& inputs) {
  const ForwardBatch& forward = inputs.forward;
  backend_->ops->ResolveTokens(forward.token_ids, inputs.history_slots, forward.attention.positions,
                               history_);
  model_->Forward(forward, kv_cache_.layers());
}

}  // namespace shoal
