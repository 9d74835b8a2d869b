// Steps for tests, put together sequence by sequence.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// A sequence's part in a batch.
struct Part {
  int32_t slot = 0;
  int64_t first_position = 0;
  std::vector<int32_t> token_ids = {};
  std::vector<int32_t> blocks = {};
  std::vector<int32_t> logits_rows = {};  // indices into token_ids
  std::vector<SamplingRow> sampling = {};
};

inline ScheduledBatch BatchOf(const std::vector<Part>& parts) {
  ScheduledBatch batch;
  for (const Part& part : parts) {
    batch.sequences.push_back({.first_position = part.first_position,
                               .num_tokens = static_cast<int32_t>(part.token_ids.size()),
                               .num_blocks = static_cast<int32_t>(part.blocks.size()),
                               .slot = part.slot});
    const auto first_row = static_cast<int32_t>(batch.num_tokens());
    for (const int32_t row : part.logits_rows) batch.logits_rows.push_back(first_row + row);
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(batch.token_ids, part.token_ids);
    append(batch.block_tables, part.blocks);
    append(batch.sampling, part.sampling);
  }
  batch.rank_tokens = {batch.num_tokens()};
  return batch;
}

inline ScheduledStep StepOf(std::vector<ScheduledBatch> ranks) {
  std::vector<int64_t> rank_tokens;
  for (const ScheduledBatch& batch : ranks) rank_tokens.push_back(batch.num_tokens());
  for (ScheduledBatch& batch : ranks) batch.rank_tokens = rank_tokens;
  return {std::move(ranks)};
}

/// The same to the last bit.
inline bool operator==(const SampledRow& a, const SampledRow& b) {
  return std::memcmp(&a, &b, sizeof(SampledRow)) == 0;
}

}  // namespace shoal
