#include "engine/execution/model_runner.h"

#include <algorithm>
#include <utility>

namespace shoal {

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const ModelRunnerConfig& config,
                                                                 ModelWeights weights,
                                                                 Backend* backend) {
  std::unique_ptr<ModelRunner> runner(new ModelRunner(backend));
  RETURN_IF_ERROR(runner->Allocate(config, std::move(weights)));
  // The ops take their working memory, so that the KV cache gets its share of what is left.
  runner->model_->WarmUp();
  runner->sampler_->WarmUp();
  RETURN_IF_ERROR(backend->device->Synchronize());
  RETURN_IF_ERROR(runner->AllocateKvCache(config));
  return runner;
}

absl::Status ModelRunner::Allocate(const ModelRunnerConfig& config, ModelWeights weights) {
  Device& device = *backend_->device;
  const KvCacheConfig& cache = config.kv_cache;
  const int64_t vocab_limit = config.vocab_limit > 0 ? config.vocab_limit : config.model.vocab_size;
  ASSIGN_OR_RETURN(model_, DeepseekMoe::Create(config.model, std::move(weights), config.dtype,
                                               {.max_tokens = config.max_num_batched_tokens,
                                                .max_positions = cache.max_model_len,
                                                .max_logits_rows = Sampler::kMaxRows,
                                                .vocab_limit = vocab_limit},
                                               backend_));
  ASSIGN_OR_RETURN(
      batch_builder_,
      BatchBuilder::Create(
          {.max_tokens = config.max_num_batched_tokens,
           .max_sequences = std::min(cache.max_num_seqs, config.max_num_batched_tokens),
           .max_blocks = (cache.max_model_len + cache.block_size - 1) / cache.block_size,
           .block_size = cache.block_size},
          &device));
  ASSIGN_OR_RETURN(history_,
                   device.Allocate(DType::kInt32, {cache.max_num_seqs, cache.max_model_len}));
  ASSIGN_OR_RETURN(sampler_, Sampler::Create(vocab_limit, history_, model_.get(), backend_));
  return absl::OkStatus();
}

absl::Status ModelRunner::AllocateKvCache(const ModelRunnerConfig& config) {
  Device& device = *backend_->device;
  const int64_t bytes_per_token = KvBytesPerToken(config.model, config.dtype);
  ASSIGN_OR_RETURN(const int32_t num_blocks,
                   ChooseNumBlocks(config.kv_cache, backend_->communicator->size(), bytes_per_token,
                                   device.FreeBytes()));
  ASSIGN_OR_RETURN(kv_cache_, KvCache::Create(config.model, config.dtype,
                                              config.kv_cache.block_size, num_blocks, device));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SampledRow>> ModelRunner::Run(const ScheduledBatch& batch) {
  const auto rank = static_cast<size_t>(backend_->communicator->rank());
  SHOAL_CHECK(batch.rank_tokens.size() > rank && batch.rank_tokens[rank] == batch.num_tokens(),
              "rank_tokens does not know of the {} tokens of rank {}", batch.num_tokens(), rank);
  std::vector<SampledRow> rows(batch.logits_rows.size());
  WriteHistory(batch.history);
  kv_cache_.CopyBlocks(batch.block_copies, *backend_);
  // Without tokens of its own a rank still computes its experts for the others.
  if (std::ranges::any_of(batch.rank_tokens, [](int64_t count) { return count > 0; })) {
    const BatchInputs inputs = batch_builder_->Build(batch);
    const ForwardBatch& forward = inputs.forward;
    backend_->ops->ResolveTokens(forward.token_ids, inputs.history_slots,
                                 forward.attention.positions, history_);
    model_->Forward(forward, kv_cache_.layers());
    sampler_->Sample(batch, rows);
  }
  RETURN_IF_ERROR(backend_->device->Synchronize());
  return rows;
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

}  // namespace shoal
