// ModelRunner: runs a ScheduledBatch through the model and chooses the tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/execution/batch_builder.h"
#include "engine/execution/kv_cache.h"
#include "engine/execution/sampler.h"
#include "engine/model/deepseek_moe.h"
#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Sizes of the model and of its steps.
struct ModelRunnerConfig {
  ModelConfig model = {};
  DType dtype = DType::kBFloat16;      // of weights, activations and KV cache
  int64_t max_num_batched_tokens = 0;  // tokens of one step, of all ranks together
  int64_t vocab_limit = 0;  // token ids below this can be generated; 0: the model's vocab_size
  KvCacheConfig kv_cache = {};
};

/// The model, its KV cache, the token history and the step's inputs and outputs on one rank. All
/// memory is allocated at the start. Thread: worker.
class ModelRunner {
 public:
  /// `backend` outlives the runner. RESOURCE_EXHAUSTED if its device has too little memory. Makes
  /// no collective calls: other ranks need not have come so far.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const ModelRunnerConfig& config,
                                                             ModelWeights weights,
                                                             Backend* backend);

  /// Runs this rank's part of a step, as all ranks do at the same time, and waits for its result:
  /// one row per logits row. Not OK: the device failed.
  absl::StatusOr<std::vector<SampledRow>> Run(const ScheduledBatch& batch);

  int32_t num_kv_blocks() const { return kv_cache_.num_blocks(); }

 private:
  explicit ModelRunner(Backend* backend) : backend_(backend) {}
  absl::Status Allocate(const ModelRunnerConfig& config, ModelWeights weights);
  absl::Status AllocateKvCache(const ModelRunnerConfig& config);
  void WriteHistory(std::span<const HistoryTokens> history);

  Backend* const backend_;
  std::unique_ptr<DeepseekMoe> model_;
  std::optional<BatchBuilder> batch_builder_;
  std::optional<Sampler> sampler_;
  Tensor history_;  // [max_num_seqs, max_model_len] int32: the tokens of the sequence in each slot
  KvCache kv_cache_;
};

}  // namespace shoal
