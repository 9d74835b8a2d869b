// ModelRunner: runs a ScheduledBatch through the model and chooses the tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/execution/batch_builder.h"
#include "engine/execution/decode_graphs.h"
#include "engine/execution/kv_cache.h"
#include "engine/execution/memory_plan.h"
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
  bool enforce_eager = false;         // no graphs, also on a device that gains by them
  int64_t max_graph_sequences = 512;  // larger steps, which gain little, are not recorded
};

/// A step that is enqueued and whose result is not collected yet.
struct StepInFlight {
  ScheduledBatch batch;          // what is enqueued may refer to it
  std::vector<SampledRow> rows;  // one per logits row, once the device has passed the mark
  int64_t mark = 0;

  /// The device has done it already.
  bool done() const { return mark == 0; }
};

/// The model, its KV cache, the token history and the step's inputs and outputs on one rank. All
/// memory is allocated at the start. Thread: worker.
class ModelRunner {
 public:
  /// OK if `ops` can compute the model. INVALID_ARGUMENT names the field of config.json that they
  /// do not take.
  static absl::Status CheckModel(const ModelRunnerConfig& config, const Ops& ops);

  /// What the device's memory will be for, at least: known before anything is loaded.
  /// RESOURCE_EXHAUSTED, with what is needed and what there is, if it does not fit `free_bytes`.
  static absl::StatusOr<MemoryPlan> PlanMemory(const ModelRunnerConfig& config,
                                               const ExpertPlacement& placement, int rank,
                                               int64_t free_bytes);

  /// `backend` outlives the runner. RESOURCE_EXHAUSTED if its device has too little memory. Makes
  /// no collective calls: other ranks need not have come so far.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Create(const ModelRunnerConfig& config,
                                                             ModelWeights weights,
                                                             Backend* backend);

  /// Enqueues this rank's part of a step, as all ranks do in the same order. The step before need
  /// not be done: the tokens that it chooses stay on the device.
  StepInFlight Enqueue(ScheduledBatch batch);

  /// Waits for a step, the oldest that was not collected: one row per logits row. Not OK: the
  /// device failed.
  absl::StatusOr<std::vector<SampledRow>> Collect(StepInFlight step);

  int32_t num_kv_blocks() const { return kv_cache_.num_blocks(); }
  /// What the memory taken since the weights were loaded is for, and what is left.
  const MemoryPlan& memory_plan() const { return memory_plan_; }

 private:
  explicit ModelRunner(Backend* backend) : backend_(backend) {}
  absl::Status Allocate(const ModelRunnerConfig& config, ModelWeights weights);
  absl::Status WarmUp(const ModelRunnerConfig& config);
  absl::Status AllocateKvCache(const ModelRunnerConfig& config);
  absl::Status RecordGraphs(const ModelRunnerConfig& config);
  void WriteHistory(std::span<const HistoryTokens> history);
  void EnqueueForward(const ScheduledBatch& batch);
  void RunForward(const BatchInputs& inputs);

  Backend* const backend_;
  MemoryPlan memory_plan_;
  std::unique_ptr<DeepseekMoe> model_;
  std::optional<BatchBuilder> batch_builder_;
  std::optional<Sampler> sampler_;
  Tensor history_;  // [max_num_seqs, max_model_len] int32: the tokens of the sequence in each slot
  KvCache kv_cache_;
  DecodeGraphs graphs_;
};

}  // namespace shoal
