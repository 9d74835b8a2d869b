// What gpu_bench measures, in sizes: 16B's, or small ones that take every path in an emulator.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "tests/bench/gpu_bench_gpu.h"

namespace shoal::bench {

/// Sequences of one length.
struct Sequences {
  int64_t count = 0;
  int64_t context = 0;  // tokens of each, up to and with those of the step
};

struct Scale {
  std::string name;
  std::string preset;  // of the model
  Timing timing;
  // Ceilings.
  int64_t buffer_bytes = 0;  // several times the L2 cache
  int64_t matmul_size = 0;
  int chain_length = 0;  // kernels of a recording
  // Kernels, by tokens of a step.
  std::vector<int64_t> decode_tokens;
  std::vector<int64_t> prefill_tokens;
  std::vector<Sequences> decode_attention;
  Sequences prefill_attention;
  int64_t sampling_rows = 0;
  // Whole steps.
  std::vector<Sequences> decode_steps;
  std::vector<Sequences> prefill_steps;
  Sequences host_step;  // decoded with the host's part

  int64_t block_size = 32;

  /// Figures are compared with targets.
  bool has_targets() const { return name == "16b"; }
  int64_t max_tokens() const;
};

/// "16b" or "toy". INVALID_ARGUMENT names both.
absl::StatusOr<Scale> ScaleByName(const std::string& name);

/// The target of a row of gpu_bench, if it has one at this scale.
std::optional<Target> TargetOf(const Scale& scale, const std::string& row,
                               const std::string& shape);

}  // namespace shoal::bench
