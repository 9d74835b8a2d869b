// ScheduledStep and StepResult: all that passes between the scheduler and the ranks. Plain data.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace shoal {

/// Tokens of one sequence to run in one step. The vectors of its ScheduledBatch hold the rest, the
/// parts of the sequences one after the other.
struct ScheduledSequence {
  int64_t first_position = 0;  // of its first token; all before it are in the cache by then
  int32_t num_tokens = 0;      // of token_ids, at least one
  int32_t num_blocks = 0;  // of block_tables: those of positions [0, first_position + num_tokens)
  int32_t slot = 0;        // its row of the token history, its own while it runs
};

/// Tokens of a sequence that are not computed in this step but must be in the token history.
struct HistoryTokens {
  int32_t slot = 0;
  std::vector<int32_t> token_ids;  // of positions [0, size)
};

/// What one rank runs in one step. May be empty: the rank then only takes part in the collectives.
struct ScheduledBatch {
  /// A token that a step in flight chooses: it is in the token history when this step runs.
  static constexpr int32_t kInFlightToken = -1;

  std::vector<ScheduledSequence> sequences;
  std::vector<int32_t> token_ids;       // [num_tokens], or kInFlightToken
  std::vector<int32_t> block_tables;    // sum of num_blocks
  std::vector<int32_t> logits_rows;     // indices into token_ids whose logits are wanted, in order;
                                        // one may come several times
  std::vector<SamplingRow> sampling;    // one per logits row
  std::vector<LogitBias> biases;        // SamplingRow::first_bias, num_biases
  std::vector<int32_t> masks;           // [num_masks, ceil(vocabulary / 32)], SamplingRow::mask
  std::vector<BlockCopy> block_copies;  // done before anything is written to the cache
  std::vector<HistoryTokens> history;   // written before anything else
  std::vector<int64_t> rank_tokens;     // num_tokens() of every rank in this step

  bool empty() const { return sequences.empty(); }
  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

/// What all ranks run in one step.
struct ScheduledStep {
  std::vector<ScheduledBatch> ranks;

  bool empty() const { return num_tokens() == 0; }
  int64_t num_tokens() const {
    int64_t count = 0;
    for (const ScheduledBatch& batch : ranks) count += batch.num_tokens();
    return count;
  }
};

/// What a step gave.
struct StepResult {
  absl::Status status;                        // not OK: a device failed; it is of no more use
  std::vector<std::vector<SampledRow>> rows;  // by rank: one per logits row, in their order
};

}  // namespace shoal
