// AllowedTokens: a token mask that is the same all along.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request/token_mask.h"

namespace shoal {

/// Only the tokens of a list may be generated, EOS and stop tokens too only if they are in it.
class AllowedTokens final : public TokenMask {
 public:
  /// `token_ids` are at least 0 and below the size of the vocabulary; there is one at least.
  explicit AllowedTokens(std::span<const int32_t> token_ids);

  bool Allow(std::span<const int32_t> generated, std::span<int32_t> allowed) override;

 private:
  std::vector<int32_t> words_;  // as Allow() gives them, up to the last one with a bit
};

}  // namespace shoal
