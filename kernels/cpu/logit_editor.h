// LogitEditor: mask, biases and penalties of a row of logits.
#pragma once

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

namespace shoal {

/// Edits a copy of the logits as SamplingRow says. One thread at a time.
class LogitEditor {
 public:
  explicit LogitEditor(UsedBytes* used) : logits_(used), uses_(used) {}

  static bool HasEdits(const SamplingRow& row) {
    return row.mask >= 0 || row.num_biases > 0 || HasPenalties(row);
  }

  /// Takes the memory for rows of `vocab` logits.
  void Reserve(int64_t vocab);

  /// The edited logits [vocab], valid until the next call. -infinity stays what it is; any other
  /// logit stays finite, unless its mask or a bias makes it -infinity.
  const float* Edit(Isa isa, const float* logits, int64_t vocab, const SamplingRow& row,
                    const SamplingInputs& inputs);

 private:
  struct TokenUse {
    int32_t count = 0;      // in the history
    int32_t generated = 0;  // of them, after the prompt
  };

  static bool HasPenalties(const SamplingRow& row) {
    return row.repetition_penalty != 1 || row.frequency_penalty != 0 || row.presence_penalty != 0;
  }
  static void AddBiases(const SamplingRow& row, const Tensor& biases, int64_t vocab, float* logits);
  void Penalize(const SamplingRow& row, const Tensor& history, int64_t vocab, float* logits);

  Scratch<float> logits_;
  Scratch<TokenUse> uses_;  // by token; zero between calls
};

}  // namespace shoal
