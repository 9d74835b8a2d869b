// TokenMask: which tokens may come next. The hook for structured output.
#pragma once

#include <cstdint>
#include <span>

namespace shoal {

/// Decides, token by token, what a request may generate. Belongs to one request. A request with a
/// mask is not scheduled one step ahead, since the mask must know every token before. Thread:
/// engine; so it must be quick, and must not throw.
class TokenMask {
 public:
  virtual ~TokenMask() = default;

  /// Sets in `allowed` bit t % 32 of word t / 32 for each token t that may follow `generated`, all
  /// tokens generated so far; the other bits are to be cleared. False: none may, the request ends
  /// with an error. Called once for each new token, and again for one that is to be recomputed.
  virtual bool Allow(std::span<const int32_t> generated, std::span<int32_t> allowed) = 0;
};

}  // namespace shoal
