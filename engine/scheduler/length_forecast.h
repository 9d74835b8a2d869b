// LengthForecast: how long sequences get, from those that ended.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/request/sequence.h"

namespace shoal {

/// Clients ask for far more tokens than they use. The forecast is the mean share of max_tokens that
/// the last sequences to end have used; all of it at the start. Thread: engine.
class LengthForecast {
 public:
  /// `conservativeness`: the forecast is multiplied by it.
  explicit LengthForecast(double conservativeness) : conservativeness_(conservativeness) {}

  void Observe(const Sequence& ended) {
    const int64_t max_tokens = ended.request->sampling().max_tokens;
    if (max_tokens == 0) return;
    const double share =
        static_cast<double>(ended.num_generated_tokens()) / static_cast<double>(max_tokens);
    share_ += (share - share_) / kMemory;
  }

  /// Tokens that the sequence will have at its end, at least `margin` more than it has now, but no
  /// more than it can.
  int64_t Expect(const Sequence& sequence, int64_t margin) const {
    const double max_tokens = sequence.request->sampling().max_tokens;
    const auto generated = static_cast<int64_t>(conservativeness_ * share_ * max_tokens);
    const int64_t expected =
        std::max(sequence.num_prompt_tokens() + generated, sequence.num_tokens() + margin);
    return std::min(expected, sequence.max_num_tokens());
  }

 private:
  static constexpr double kMemory = 16;  // sequences

  const double conservativeness_;
  double share_ = 1;
};

}  // namespace shoal
