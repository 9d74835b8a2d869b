// Sampler: has tokens chosen for the logits rows of a batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "engine/execution/input_buffer.h"
#include "engine/model/deepseek_moe.h"
#include "engine/request/request.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/backend.h"

namespace shoal {

/// Owns what the choice of tokens reads and writes on the device. Logits are made for some rows at
/// once: it bounds their memory when a prompt's logprobs are wanted. Thread: worker.
class Sampler {
 public:
  struct Limits {
    int64_t max_rows = 0;  // at once
    int64_t vocab = 0;     // tokens to choose among
  };

  /// Biases of one row: those of its request, and of the tokens that are not to end it yet.
  static constexpr int64_t kMaxRowBiases =
      SamplingParams::kMaxLogitBiases + SamplingParams::kMaxStopTokenIds;

  /// Rows at once for so many running sequences: a step that generates reads the model's head once,
  /// if it is not of very many.
  static constexpr int64_t MaxRows(int64_t max_num_seqs) {
    return std::clamp<int64_t>(max_num_seqs, 32, 256);
  }

  /// Bytes on the device.
  static int64_t DeviceBytes(const Limits& limits);

  /// history [num_slots, max_model_len] int32. `model` and `backend` outlive the sampler.
  /// RESOURCE_EXHAUSTED if the device has too little memory.
  static absl::StatusOr<Sampler> Create(const Limits& limits, const Tensor& history,
                                        DeepseekMoe* model, Backend* backend);

  /// Chooses as many tokens at once as there can be, so that the ops have taken their working
  /// memory, and waits for it. Not OK: the device failed.
  absl::Status WarmUp();

  /// Enqueues the choice of a token for every logits row of `batch`, the model's last forward pass.
  /// out [num_rows] is good once the device has done it.
  void Sample(const ScheduledBatch& batch, std::span<SampledRow> out);

 private:
  /// Consecutive rows of a batch, on the device.
  struct Chunk {
    Tensor row_ids;  // [num_rows] int32
    SamplingInputs inputs;
  };

  Sampler(const Limits& limits, InputBuffer buffer) : limits_(limits), buffer_(std::move(buffer)) {}
  Chunk Upload(const ScheduledBatch& batch, int64_t first_row, int64_t num_rows);
  void Write(const ScheduledBatch& batch, int64_t first_row, const Chunk& chunk);

  Limits limits_;
  InputBuffer buffer_;
  Tensor sampled_;  // [max_rows * sizeof(SampledRow)] bytes
  Tensor history_;
  DeepseekMoe* model_ = nullptr;
  Backend* backend_ = nullptr;
};

}  // namespace shoal
