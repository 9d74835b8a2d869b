// ScheduledBatch and StepResult: all that passes between the scheduler and the workers. Plain data.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace shoal {

/// Tokens of one sequence to run in one step.
struct ScheduledSequence {
  int64_t sequence_id = 0;
  int64_t first_position = 0;         // position of token_ids[0]; all before it are in the cache
  std::vector<int32_t> token_ids;     // at least one
  std::vector<int32_t> block_table;   // blocks of positions [0, first_position + token_ids.size())
  std::vector<int32_t> logits_rows;   // indices into token_ids whose logits are wanted, ascending
  std::vector<SamplingRow> sampling;  // one per logits row
};

/// One step of one rank. May be empty: the rank then only takes part in the collectives.
struct ScheduledBatch {
  std::vector<ScheduledSequence> sequences;

  bool empty() const { return sequences.empty(); }
  int64_t num_tokens() const {
    int64_t count = 0;
    for (const ScheduledSequence& sequence : sequences) {
      count += static_cast<int64_t>(sequence.token_ids.size());
    }
    return count;
  }
};

/// What a step gave.
struct StepResult {
  absl::Status status;           // not OK: the device failed; it is of no more use
  std::vector<SampledRow> rows;  // one per logits row, in the order of the batch
};

}  // namespace shoal
