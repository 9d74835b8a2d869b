#include "server/service/allowed_tokens.h"

#include <algorithm>

#include "kernels/status.h"

namespace shoal {

AllowedTokens::AllowedTokens(std::span<const int32_t> token_ids) {
  SHOAL_CHECK(!token_ids.empty(), "an empty list allows nothing");
  words_.resize(static_cast<size_t>(*std::max_element(token_ids.begin(), token_ids.end())) / 32 +
                1);
  for (const int32_t id : token_ids) {
    words_[static_cast<size_t>(id) / 32] |= static_cast<int32_t>(uint32_t{1} << (id % 32));
  }
}

bool AllowedTokens::Allow(std::span<const int32_t> generated, std::span<int32_t> allowed) {
  SHOAL_CHECK(allowed.size() >= words_.size(), "the ids were held against the vocabulary");
  std::fill(std::copy(words_.begin(), words_.end(), allowed.begin()), allowed.end(), 0);
  return true;
}

}  // namespace shoal
