// PreTokenizer: cuts text into the pieces that BPE never merges across.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/json_node.h"
#include "tokenizer/regex.h"

namespace shoal {

/// The Split, Digits and ByteLevel steps of tokenizer.json, each run on the pieces of the one
/// before. Immutable. Thread: any, with a Workspace each.
class PreTokenizer {
 public:
  /// Memory that calls reuse. Thread: one at a time.
  struct Workspace {
    Regex::Workspace regex;
    std::string prefixed;
    std::vector<std::string_view> pieces, cut;
  };

  /// `node`: the field pre_tokenizer. INVALID_ARGUMENT naming what we do not support.
  static absl::StatusOr<PreTokenizer> FromJson(const JsonNode& node);

  /// The pieces of `text` (valid UTF-8), none empty. They live as long as `text` and until the next
  /// call.
  std::span<const std::string_view> Split(std::string_view text, Workspace* workspace) const;

 private:
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Step {
    Regex regex;
    Behavior behavior;
    bool invert;  // what does not match counts as a match

    void Cut(std::string_view piece, Workspace* workspace) const;
  };

  absl::Status AddSplit(const JsonNode& node);
  absl::Status AddDigits(const JsonNode& node);
  absl::Status AddByteLevel(const JsonNode& node);
  absl::Status AddStep(absl::StatusOr<Regex> regex, Behavior behavior, bool invert,
                       const JsonNode& node);

  std::vector<Step> steps_;
  bool add_prefix_space_ = false;
};

}  // namespace shoal
