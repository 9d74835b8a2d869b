// Random numbers for weights: nearly normally distributed, by counter, the same bits everywhere.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/philox.h"

namespace shoal {

/// The sum of eight uniform bytes less its mean: nearly normally distributed, within 4.9 of its
/// standard deviations.
constexpr int32_t CenteredByteSum(uint64_t bits) {
  constexpr uint64_t kEvenBytes = 0x00ff00ff00ff00ff;
  const uint64_t pairs = (bits & kEvenBytes) + (bits >> 8 & kEvenBytes);
  return static_cast<int32_t>(pairs * 0x0001000100010001 >> 48) - 1020;
}

/// Its standard deviation, the root of 8 (256^2 - 1) / 12.
inline constexpr float kByteSumDeviation = 209.0207644f;

/// Elements 2 pair and 2 pair + 1 of what Ops::FillNormal makes under `seed`, still to be
/// multiplied by its standard deviation / kByteSumDeviation.
constexpr std::array<int32_t, 2> ByteSumPair(uint64_t seed, int64_t pair) {
  const auto counter = static_cast<uint64_t>(pair);
  const std::array<uint32_t, 4> words =
      Philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return {CenteredByteSum(uint64_t{words[0]} << 32 | words[1]),
          CenteredByteSum(uint64_t{words[2]} << 32 | words[3])};
}

}  // namespace shoal
