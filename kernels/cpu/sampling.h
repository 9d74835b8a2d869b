// Sampling: from a row of logits to a token.
#pragma once

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

namespace shoal {

/// Chooses tokens row by row; see Ops::Sample. One thread at a time.
class RowSampler {
 public:
  explicit RowSampler(UsedBytes* used) : weights_(used), candidates_(used) {}

  SampledRow Sample(Isa isa, const float* logits, int64_t vocab, const SamplingRow& row);

 private:
  struct Candidate {
    uint32_t rank = 0;  // rises as the token becomes less likely
    int32_t id = 0;
    float weight = 0;  // probability, the most likely token's being 1
  };

  int32_t Draw(Isa isa, const float* logits, int64_t vocab, float highest, const SamplingRow& row);
  template <typename Weight>
  static int64_t KeepMostLikely(Candidate* candidates, int64_t count, double target,
                                const Weight& weight);

  Scratch<float> weights_;
  Scratch<Candidate> candidates_;
};

}  // namespace shoal
