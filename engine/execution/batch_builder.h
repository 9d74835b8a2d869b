// BatchBuilder: from a ScheduledBatch, sequence by sequence, to the tensors of one forward pass.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/forward_batch.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/device.h"

namespace shoal {

/// A rank's part of a step on its device.
struct BatchInputs {
  ForwardBatch forward;  // its token_ids as scheduled: some may still have to be resolved
  Tensor history_slots;  // [num_tokens] int32: the row of the token history of each token
};

/// Owns the step's input tensors, of the largest size, and their host copies. Thread: worker.
class BatchBuilder {
 public:
  struct Limits {
    int64_t max_tokens = 0;     // tokens of one step
    int64_t max_sequences = 0;  // sequences of one step
    int64_t max_blocks = 0;     // blocks of one sequence
    int64_t block_size = 0;     // tokens per block
  };

  /// `device` outlives the builder. RESOURCE_EXHAUSTED if it has too little memory.
  static absl::StatusOr<BatchBuilder> Create(const Limits& limits, Device* device);

  /// Lays the batch out and enqueues the copies to the device; the last ones must be done by then.
  /// `batch` stays untouched until these are. The result is good until the next call.
  BatchInputs Build(const ScheduledBatch& batch);

 private:
  /// One int32 input, on the host and on the device.
  struct Input {
    std::vector<int32_t> host;
    Tensor device;
  };

  BatchBuilder(const Limits& limits, Device* device) : limits_(limits), device_(device) {}
  void Add(const ScheduledSequence& sequence, std::span<const int32_t> blocks);
  Tensor Upload(std::span<const int32_t> values, const Tensor& input, int64_t num_rows);

  Limits limits_;
  Device* device_;
  Tensor token_ids_;     // [num_tokens]
  Input positions_;      // [num_tokens]
  Input slot_mapping_;   // [num_tokens]
  Input history_slots_;  // [num_tokens]
  Input cu_seqlens_;     // [num_sequences + 1]
  Input block_tables_;   // [num_sequences, max_blocks]; past a sequence's blocks: 0
};

}  // namespace shoal
