#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

namespace shoal {

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    by_first_byte_[static_cast<uint8_t>(token.content[0])].push_back(token);
  }
  for (std::vector<AddedToken>& candidates : by_first_byte_) {
    std::sort(candidates.begin(), candidates.end(), [](const AddedToken& a, const AddedToken& b) {
      return std::pair(b.content.size(), a.id) < std::pair(a.content.size(), b.id);
    });
  }
}

std::optional<AddedTokens::Match> AddedTokens::Find(std::string_view text, size_t offset,
                                                    bool with_special) const {
  for (size_t begin = offset; begin < text.size(); ++begin) {
    for (const AddedToken& token : by_first_byte_[static_cast<uint8_t>(text[begin])]) {
      if (token.special && !with_special) continue;
      if (!text.substr(begin).starts_with(token.content)) continue;
      return Match{begin, begin + token.content.size(), token.id};
    }
  }
  return std::nullopt;
}

}  // namespace shoal
