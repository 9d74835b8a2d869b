#include "kernels/cpu/logit_editor.h"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

namespace shoal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMaskBits = 32;

/// out = the n logits that the mask allows, -infinity for the others.
struct MaskLogits {
  struct Args {
    const float* logits = nullptr;
    int64_t n = 0;
    const uint32_t* mask = nullptr;
    float* out = nullptr;
  };

  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    for (int64_t begin = 0; begin < args.n; begin += kMaskBits) {
      const uint32_t word = args.mask[begin / kMaskBits];
      const int64_t count = std::min(kMaskBits, args.n - begin);
      for (int64_t bit = 0; bit < count; ++bit) {
        args.out[begin + bit] = word >> bit & 1 ? args.logits[begin + bit] : -kInfinity;
      }
    }
  }
};

/// Keeps extreme biases and penalties from making an infinity that would drown the other logits.
float Finite(float logit) {
  constexpr float kMost = std::numeric_limits<float>::max();
  return std::clamp(logit, -kMost, kMost);
}

}  // namespace

void LogitEditor::Reserve(int64_t vocab) {
  logits_.Reserve(vocab);
  uses_.Reserve(vocab);
}

const float* LogitEditor::Edit(Isa isa, const float* logits, int64_t vocab, const SamplingRow& row,
                               const SamplingInputs& inputs) {
  float* edited = logits_.Reserve(vocab);
  if (row.mask >= 0) {
    const Tensor& masks = inputs.masks;
    SHOAL_CHECK(!masks.empty() && row.mask < masks.shape[0], "mask {} of {}", row.mask,
                masks.shape[0]);
    const auto* mask = masks.as<const uint32_t>() + row.mask * masks.shape[1];
    RunKernel<MaskLogits>(isa, {.logits = logits, .n = vocab, .mask = mask, .out = edited});
  } else {
    std::copy_n(logits, vocab, edited);
  }
  if (row.num_biases > 0) AddBiases(row, inputs.biases, vocab, edited);
  if (HasPenalties(row)) Penalize(row, inputs.history, vocab, edited);
  return edited;
}

void LogitEditor::AddBiases(const SamplingRow& row, const Tensor& biases, int64_t vocab,
                            float* logits) {
  const int64_t count =
      biases.empty() ? 0 : biases.size_bytes() / static_cast<int64_t>(sizeof(LogitBias));
  SHOAL_CHECK(row.first_bias >= 0 && row.first_bias + int64_t{row.num_biases} <= count,
              "{} biases from {} on, of {}", row.num_biases, row.first_bias, count);
  for (const LogitBias& bias :
       std::span(biases.as<const LogitBias>() + row.first_bias, row.num_biases)) {
    SHOAL_CHECK(bias.token_id >= 0 && bias.token_id < vocab, "bias of token {} of {}",
                bias.token_id, vocab);
    float& logit = logits[bias.token_id];
    if (bias.bias == -kInfinity) logit = -kInfinity;
    if (logit != -kInfinity) logit = Finite(logit + bias.bias);
  }
}

/// Counts the tokens of the history, then edits the logit of each when it comes for the first time.
void LogitEditor::Penalize(const SamplingRow& row, const Tensor& history, int64_t vocab,
                           float* logits) {
  SHOAL_CHECK(row.slot >= 0 && row.slot < history.shape[0] && row.position <= history.shape[1],
              "{} tokens of slot {} in a history of {} slots, {} tokens each", row.position,
              row.slot, history.shape[0], history.shape[1]);
  const auto* tokens = history.as<const int32_t>() + row.slot * history.shape[1];
  TokenUse* uses = uses_.Reserve(vocab);
  for (int64_t i = 0; i < row.position; ++i) {
    if (tokens[i] < 0) continue;  // nothing could be chosen there
    SHOAL_CHECK(tokens[i] < vocab, "token {} of {}", tokens[i], vocab);
    ++uses[tokens[i]].count;
    uses[tokens[i]].generated += i >= row.num_prompt_tokens;
  }
  for (int64_t i = 0; i < row.position; ++i) {
    if (tokens[i] < 0) continue;
    const TokenUse use = std::exchange(uses[tokens[i]], {});
    float& logit = logits[tokens[i]];
    if (use.count == 0 || logit == -kInfinity) continue;
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    logit -= row.frequency_penalty * static_cast<float>(use.generated);
    if (use.generated > 0) logit -= row.presence_penalty;
    logit = Finite(logit);
  }
}

}  // namespace shoal
