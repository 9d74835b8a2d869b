// Sampling: from a row of logits to a token.
#pragma once

#include <span>

#include "kernels/cpu/logit_editor.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

namespace shoal {

/// Chooses tokens row by row; see Ops::Sample. One thread at a time.
class RowSampler {
 public:
  explicit RowSampler(UsedBytes* used) : editor_(used), weights_(used), candidates_(used) {}

  /// Takes the memory for rows of `vocab` logits, whatever their parameters.
  void Reserve(int64_t vocab);

  /// Does not record the token.
  SampledRow Sample(Isa isa, const float* logits, int64_t vocab, const SamplingRow& row,
                    const SamplingInputs& inputs);

 private:
  /// A row of logits, edited or not.
  struct Logits {
    const float* values = nullptr;
    int64_t vocab = 0;
    float highest = 0;
  };
  /// A token that may still be drawn.
  struct Candidate {
    uint32_t rank = 0;  // those of the lowest ranks are kept
    int32_t id = 0;
    float weight = 0;  // probability, the most likely token's being 1
  };

  int32_t Choose(Isa isa, Logits logits, const SamplingRow& row, const SamplingInputs& inputs);
  int32_t Draw(Isa isa, const Logits& logits, const SamplingRow& row);
  std::span<Candidate> LikelyTokens(Isa isa, const Logits& logits, const SamplingRow& row,
                                    double& total);
  static void RankByTypicality(const Logits& logits, float temperature,
                               std::span<Candidate> candidates);
  template <typename Weight>
  static std::span<Candidate> KeepLowestRanks(std::span<Candidate> candidates, double target,
                                              const Weight& weight);

  LogitEditor editor_;
  Scratch<float> weights_;
  Scratch<Candidate> candidates_;
};

}  // namespace shoal
