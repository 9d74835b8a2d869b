// ContextModel: a device without maths, for tests of the scheduler.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>

#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Every token that it gives depends on each token before it, as read from its cache through the
/// block table. So a sequence comes out as when it runs alone only if the scheduler keeps its cache
/// right.
class ContextModel {
 public:
  static constexpr int32_t kVocabSize = 50;

  explicit ContextModel(int32_t block_size) : block_size_(block_size) {}

  StepResult Run(const ScheduledBatch& batch) {
    StepResult result;
    for (const ScheduledSequence& sequence : batch.sequences) RunSequence(sequence, result);
    return result;
  }

  /// Makes the cache entry of a token non-finite, and all that follows from it.
  void Poison(int32_t token_id) { poison_ = token_id; }

 private:
  static constexpr uint64_t kNonFinite = 0;

  static uint64_t Mix(uint64_t state, uint64_t value) {
    state = (state + value + 1) * 0x9E3779B97F4A7C15u;
    return (state ^ (state >> 29)) | 1;
  }

  int64_t Slot(const ScheduledSequence& sequence, int64_t position) const {
    const auto block = static_cast<size_t>(position / block_size_);
    return sequence.block_table.at(block) * int64_t{block_size_} + position % block_size_;
  }

  void RunSequence(const ScheduledSequence& sequence, StepResult& result) {
    ASSERT_EQ(sequence.logits_rows.size(), sequence.sampling.size());
    size_t row = 0;
    for (size_t i = 0; i < sequence.token_ids.size(); ++i) {
      const int64_t position = sequence.first_position + static_cast<int64_t>(i);
      cache_[Slot(sequence, position)] = sequence.token_ids[i] == poison_
                                             ? kNonFinite
                                             : static_cast<uint64_t>(sequence.token_ids[i] + 1);
      if (row == sequence.logits_rows.size() ||
          sequence.logits_rows[row] != static_cast<int32_t>(i)) {
        continue;
      }
      const SamplingRow& sampling = sequence.sampling[row++];
      ASSERT_EQ(sampling.position, position + 1);
      result.rows.push_back(Sample(sequence, position, sampling));
    }
    ASSERT_EQ(row, sequence.logits_rows.size()) << "rows must ascend";
  }

  SampledRow Sample(const ScheduledSequence& sequence, int64_t position,
                    const SamplingRow& sampling) {
    uint64_t state = 1;
    for (int64_t p = 0; p <= position; ++p) {
      const uint64_t entry = cache_.at(Slot(sequence, p));
      if (entry == kNonFinite) return {};
      state = Mix(state, entry);
    }
    SampledRow row;
    const uint64_t drawn = Mix(state, sampling.seed) >> 20;
    row.token_id = sampling.forced_token >= 0 ? sampling.forced_token
                                              : static_cast<int32_t>(drawn % kVocabSize);
    row.logprob = -1 - static_cast<float>(Mix(state, static_cast<uint64_t>(row.token_id)) >> 50);
    for (int i = 0; i < kMaxTopLogprobs; ++i) row.top_ids[static_cast<size_t>(i)] = i;
    return row;
  }

  const int32_t block_size_;
  int32_t poison_ = -1;
  std::map<int64_t, uint64_t> cache_;  // by slot
};

}  // namespace shoal
