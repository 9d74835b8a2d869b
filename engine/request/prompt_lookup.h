// PromptLookup: guesses the next tokens of a sequence from its own earlier ones.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shoal {

/// Drafts for speculative decoding: what followed the last tokens when they last occurred before.
/// One per sequence; keeps an index that grows with it. Thread: engine.
class PromptLookup {
 public:
  /// Looks for the last n tokens, from n = max_ngram down to min_ngram; 1 <= min_ngram <=
  /// max_ngram.
  PromptLookup(int min_ngram, int max_ngram);

  /// Appends to `drafts` up to `max_drafts` tokens that may follow `tokens`: all tokens of the
  /// sequence, those of the last call among them.
  void Propose(std::span<const int32_t> tokens, int64_t max_drafts, std::vector<int32_t>& drafts);
};

}  // namespace shoal
