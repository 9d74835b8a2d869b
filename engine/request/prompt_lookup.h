// PromptLookup: guesses the next tokens of a sequence from its own earlier ones.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <span>
#include <vector>

namespace shoal {

/// Drafts for speculative decoding: what followed the last tokens when they last occurred before
/// (prompt lookup decoding, github.com/apoorvumang/prompt-lookup-decoding). One per sequence; keeps
/// an index that grows with it. Thread: engine.
class PromptLookup {
 public:
  /// Looks for the last n tokens, from n = max_ngram down to min_ngram; 1 <= min_ngram <=
  /// max_ngram.
  PromptLookup(int min_ngram, int max_ngram);
  PromptLookup(const PromptLookup&) = delete;  // the maps point to tokens_

  /// Appends to `drafts` up to `max_drafts` tokens that may follow `tokens`: all tokens of the
  /// sequence, those of the last call among them.
  void Propose(std::span<const int32_t> tokens, int64_t max_drafts, std::vector<int32_t>& drafts);

 private:
  using Tokens = std::span<const int32_t>;

  /// An n-gram is named by the position after one of its occurrences.
  static Tokens NgramBefore(Tokens tokens, int32_t end, int n);
  struct NgramHash {
    const Tokens* tokens;
    int n;
    size_t operator()(int32_t end) const;
  };
  struct NgramEqual {
    const Tokens* tokens;
    int n;
    bool operator()(int32_t a, int32_t b) const;
  };

  const int min_ngram_;
  const int max_ngram_;
  Tokens tokens_;  // of the call in progress
  int32_t num_indexed_ = 0;
  /// By n - min_ngram: from any occurrence among the first num_indexed_ tokens to the last one.
  std::vector<absl::flat_hash_map<int32_t, int32_t, NgramHash, NgramEqual>> last_;
};

}  // namespace shoal
