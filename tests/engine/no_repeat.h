// A token mask without state, for tests.
#pragma once

#include <algorithm>

#include "engine/request/token_mask.h"

namespace shoal {

/// Never the same token twice in a row.
class NoRepeat final : public TokenMask {
 public:
  bool Allow(std::span<const int32_t> generated, std::span<int32_t> allowed) override {
    std::ranges::fill(allowed, -1);
    if (generated.empty()) return true;
    const auto last = static_cast<uint32_t>(generated.back());
    allowed[last / 32] = static_cast<int32_t>(~(1u << last % 32));
    return true;
  }
};

}  // namespace shoal
