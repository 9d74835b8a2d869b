// Sampler: has tokens chosen for the logits rows of a batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/deepseek_moe.h"
#include "engine/request/request.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/backend.h"

namespace shoal {

/// Owns what the choice of tokens reads and writes on the device. Logits are made for some rows at
/// once: it bounds their memory when a prompt's logprobs are wanted. Thread: worker.
class Sampler {
 public:
  static constexpr int64_t kMaxRows = 32;  // at once

  /// Biases of one row: those of its request, and of the tokens that are not to end it yet.
  static constexpr int64_t kMaxRowBiases =
      SamplingParams::kMaxLogitBiases + SamplingParams::kMaxStopTokenIds;

  /// Chooses among `vocab_limit` tokens; history [num_slots, max_model_len] int32. `model` and
  /// `backend` outlive the sampler. RESOURCE_EXHAUSTED if the device has too little memory.
  static absl::StatusOr<Sampler> Create(int64_t vocab_limit, const Tensor& history,
                                        DeepseekMoe* model, Backend* backend);

  /// Chooses from the model's last forward pass as many tokens at once as there can be, so that the
  /// ops have taken their working memory.
  void WarmUp();

  /// Enqueues the choice of a token for every logits row of `batch`, the model's last forward pass.
  /// `batch` and out [num_rows] stay untouched until the device is synchronized.
  void Sample(const ScheduledBatch& batch, std::span<SampledRow> out);

 private:
  Sampler(DeepseekMoe* model, Backend* backend) : model_(model), backend_(backend) {}
  SamplingInputs Upload(const ScheduledBatch& batch, std::span<SamplingRow> rows);

  DeepseekMoe* model_;
  Backend* backend_;
  std::vector<SamplingRow> rows_;  // of the batch, as they are on the device
  Tensor row_ids_;                 // [kMaxRows] int32
  SamplingInputs inputs_;          // of kMaxRows rows
  Tensor sampled_;                 // [kMaxRows * sizeof(SampledRow)] bytes
};

}  // namespace shoal
