// ModelRunner: runs a ScheduledBatch through the model and chooses the tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/execution/batch_builder.h"
#include "engine/execution/kv_cache.h"
#include "engine/model/deepseek_moe.h"
#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Sizes of the model and of its steps.
struct ModelRunnerConfig {
  ModelConfig model = {};
  DType dtype = DType::kBFloat16;      // of weights, activations and KV cache
  int64_t max_num_batched_tokens = 0;  // tokens of one step
  int64_t vocab_limit = 0;  // token ids below this can be generated; 0: the model's vocab_size
  KvCacheConfig kv_cache = {};
};

/// The model, its KV cache and the step's inputs and outputs on one rank. All memory is allocated
/// at the start. Thread: worker.
class ModelRunner {
 public:
  /// `backend` outlives the runner. RESOURCE_EXHAUSTED if its device has too little memory.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const ModelRunnerConfig& config,
                                                             ModelWeights weights,
                                                             Backend* backend);

  /// Runs the batch and waits for its result.
  StepResult Run(const ScheduledBatch& batch);

  int32_t num_kv_blocks() const { return kv_cache_.num_blocks(); }

 private:
  /// Logits are made for so many rows at once: it bounds their memory when a prompt's logprobs are
  /// wanted.
  static constexpr int64_t kMaxLogitsRows = 32;

  ModelRunner(Backend* backend, std::unique_ptr<DeepseekMoe> model, BatchBuilder batch_builder)
      : backend_(backend), model_(std::move(model)), batch_builder_(std::move(batch_builder)) {}
  absl::Status AllocateRows();
  absl::Status WarmUp();
  void SampleRows(int64_t begin, int64_t count, std::span<SampledRow> out);

  Backend* const backend_;
  const std::unique_ptr<DeepseekMoe> model_;
  BatchBuilder batch_builder_;
  KvCache kv_cache_;
  Tensor row_ids_;   // [kMaxLogitsRows] int32
  Tensor sampling_;  // [kMaxLogitsRows * sizeof(SamplingRow)] bytes
  Tensor sampled_;   // [kMaxLogitsRows * sizeof(SampledRow)] bytes
};

}  // namespace shoal
