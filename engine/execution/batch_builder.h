// BatchBuilder: from a ScheduledBatch, sequence by sequence, to the tensors of one forward pass.
#pragma once

#include <cstdint>
#include <utility>

#include "engine/execution/input_buffer.h"
#include "engine/model/forward_batch.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/device.h"

namespace shoal {

/// What the ops see of the size of a step. The same shape means the same tensors at the same
/// addresses.
struct BatchShape {
  int64_t num_tokens = 0;
  int64_t num_sequences = 0;
  int64_t max_query_len = 0;    // no sequence has more tokens in this step
  int64_t max_context_len = 0;  // nor more up to its last one
  bool padded = false;          // the last tokens and sequences may be padding

  /// Without padding.
  static BatchShape Of(const ScheduledBatch& batch);
};

/// A rank's part of a step on its device.
struct BatchInputs {
  ForwardBatch forward;  // its token_ids as scheduled: some may still have to be resolved
  Tensor history_slots;  // [num_tokens] int32: the row of the token history of each token; -1 for
                         // a padding token
};

/// Owns the step's inputs, of the largest size. Thread: worker.
class BatchBuilder {
 public:
  struct Limits {
    int64_t max_tokens = 0;     // tokens of one step
    int64_t max_sequences = 0;  // sequences of one step
    int64_t max_blocks = 0;     // blocks of one sequence
    int64_t block_size = 0;     // tokens per block
  };

  /// Bytes on the device.
  static int64_t DeviceBytes(const Limits& limits);

  /// `device` outlives the builder. RESOURCE_EXHAUSTED if it has too little memory.
  static absl::StatusOr<BatchBuilder> Create(const Limits& limits, Device* device);

  /// Lays the batch out and enqueues its copy to the device. `shape` is the batch's own, or a
  /// padded one that it fits into. The result is good for what is enqueued before the next call;
  /// its rank_tokens are the batch's.
  BatchInputs Build(const ScheduledBatch& batch, const BatchShape& shape);

 private:
  BatchBuilder(const Limits& limits, InputBuffer buffer)
      : limits_(limits), buffer_(std::move(buffer)) {}
  int64_t NumBlocks(int64_t context_len) const;
  BatchInputs Place(const BatchShape& shape);
  void Write(const ScheduledBatch& batch, const BatchInputs& inputs);
  void WriteBlockTables(const ScheduledBatch& batch, const Tensor& block_tables);

  Limits limits_;
  InputBuffer buffer_;
};

}  // namespace shoal
