// AddedTokens: the tokens that are found in the text itself, before any other cutting.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

struct AddedToken {
  int32_t id;
  std::string content;  // not empty
  bool special;
};

/// Immutable. Thread: any.
class AddedTokens {
 public:
  struct Match {
    size_t begin, end;  // bytes
    int32_t id;
  };

  explicit AddedTokens(const std::vector<AddedToken>& tokens);

  /// The leftmost token in `text` at or after `offset`; of several there, the longest.
  std::optional<Match> Find(std::string_view text, size_t offset, bool with_special) const;

 private:
  std::array<std::vector<AddedToken>, 256> by_first_byte_;  // longest first
};

}  // namespace shoal
