#include "engine/execution/model_runner.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace shoal {

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(const ModelRunnerConfig& config,
                                                                 ModelWeights weights,
                                                                 Backend* backend) {
  Device& device = *backend->device;
  const KvCacheConfig& cache = config.kv_cache;
  ASSIGN_OR_RETURN(auto model, DeepseekMoe::Create(config.model, std::move(weights), config.dtype,
                                                   {.max_tokens = config.max_num_batched_tokens,
                                                    .max_positions = cache.max_model_len,
                                                    .max_logits_rows = kMaxLogitsRows,
                                                    .vocab_limit = config.vocab_limit},
                                                   backend));
  ASSIGN_OR_RETURN(
      BatchBuilder batch_builder,
      BatchBuilder::Create(
          {.max_tokens = config.max_num_batched_tokens,
           .max_sequences = std::min(cache.max_num_seqs, config.max_num_batched_tokens),
           .max_blocks = (cache.max_model_len + cache.block_size - 1) / cache.block_size,
           .block_size = cache.block_size},
          &device));
  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(backend, std::move(model), std::move(batch_builder)));
  RETURN_IF_ERROR(runner->AllocateRows());
  RETURN_IF_ERROR(runner->WarmUp());
  ASSIGN_OR_RETURN(
      const int32_t num_blocks,
      ChooseNumBlocks(cache, KvBytesPerToken(config.model, config.dtype), device.FreeBytes()));
  ASSIGN_OR_RETURN(runner->kv_cache_, KvCache::Create(config.model, config.dtype, cache.block_size,
                                                      num_blocks, device));
  return runner;
}

absl::Status ModelRunner::AllocateRows() {
  Device& device = *backend_->device;
  const int64_t rows = kMaxLogitsRows;
  ASSIGN_OR_RETURN(row_ids_, device.Allocate(DType::kInt32, {rows}));
  ASSIGN_OR_RETURN(sampling_, device.Allocate(DType::kByte, {rows * int64_t{sizeof(SamplingRow)}}));
  ASSIGN_OR_RETURN(sampled_, device.Allocate(DType::kByte, {rows * int64_t{sizeof(SampledRow)}}));
  return absl::OkStatus();
}

/// Has the ops take their working memory, so that the KV cache gets its share of what is left.
absl::Status ModelRunner::WarmUp() {
  const std::vector<SamplingRow> sampling(kMaxLogitsRows, {.temperature = 1, .top_logprobs = 1});
  backend_->device->CopyFromHost(sampling.data(), sampling_);
  model_->WarmUp();
  backend_->ops->Sample(model_->Logits(row_ids_), sampling_, sampled_);
  return backend_->device->Synchronize();
}

StepResult ModelRunner::Run(const ScheduledBatch& batch) {
  StepResult result;
  if (batch.empty()) return result;
  model_->Forward(batch_builder_.Build(batch), kv_cache_.layers());
  const int64_t num_rows = std::ssize(batch_builder_.logits_rows());
  result.rows.resize(static_cast<size_t>(num_rows));
  for (int64_t begin = 0; begin < num_rows; begin += kMaxLogitsRows) {
    SampleRows(begin, std::min(kMaxLogitsRows, num_rows - begin), result.rows);
  }
  result.status = backend_->device->Synchronize();
  return result;
}

/// Enqueues the choice of tokens for rows [begin, begin + count) of the batch.
void ModelRunner::SampleRows(int64_t begin, int64_t count, std::span<SampledRow> out) {
  Device& device = *backend_->device;
  const Tensor row_ids = row_ids_.Rows(0, count);
  const Tensor sampling = sampling_.Rows(0, count * int64_t{sizeof(SamplingRow)});
  const Tensor sampled = sampled_.Rows(0, count * int64_t{sizeof(SampledRow)});
  device.CopyFromHost(batch_builder_.logits_rows().data() + begin, row_ids);
  device.CopyFromHost(batch_builder_.sampling().data() + begin, sampling);
  backend_->ops->Sample(model_->Logits(row_ids), sampling, sampled);
  device.CopyToHost(sampled, out.data() + begin);
}

}  // namespace shoal
