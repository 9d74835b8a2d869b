// StepBuilder: lays sequences out as the batches of one step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request/sequence.h"
#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Fills a ScheduledStep, sequence by sequence; changes no sequence. Thread: engine.
class StepBuilder {
 public:
  /// `vocab_size`: bits of a token mask. `num_sequences`: how many will come, about.
  StepBuilder(size_t num_ranks, int64_t vocab_size, size_t num_sequences);

  /// The next `num_tokens` tokens of the sequence, then `drafts`. They get logits rows, in order:
  /// one for each prompt token that they predict and whose logprob is wanted and not yet
  /// delivered; and, if all tokens of the sequence are then computed and one more is wanted, one
  /// for the next token and one after each draft. Returns the number of rows.
  int64_t Add(const Sequence& sequence, int64_t num_tokens, std::span<const int32_t> drafts);

  /// One more row for the last token added, which chooses for `fork`.
  void AddFork(const Sequence& fork);

  /// Tokens that must be in the history of the sequence's slot before the step.
  void AddHistory(const Sequence& sequence, int64_t num_tokens);

  /// The step, with the block copies of each rank. The builder is empty after that.
  ScheduledStep Finish(std::vector<std::vector<BlockCopy>> copies);

 private:
  ScheduledBatch& batch(int32_t rank) { return step_.ranks[static_cast<size_t>(rank)]; }
  int64_t AddPromptRows(const Sequence& sequence, int64_t num_tokens);
  void AddChoice(const Sequence& sequence, int64_t position, bool recorded);
  void AddMask(const Sequence& sequence, SamplingRow& row);

  const int64_t vocab_size_;
  const size_t mask_words_;
  ScheduledStep step_;
};

}  // namespace shoal
