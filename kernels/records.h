// Records: plain data that the host and kernels exchange. Every compiler of kernels includes it.
#pragma once

#include <array>
#include <cstdint>

namespace shoal {

/// From block `source` to block `target` of the KV cache. Plain data, copied to the device.
struct BlockCopy {
  int32_t source = 0;
  int32_t target = 0;
};

/// Most likely alternatives returned with a token (OpenAI's limit).
inline constexpr int kMaxTopLogprobs = 20;

/// Added to a token's logit. Plain data, copied to the device.
struct LogitBias {
  int32_t token_id = 0;
  float bias = 0;  // -infinity: the token is never chosen
};

/// One row of Ops::Sample: how to choose a token from its logits. Plain data, copied to the device.
/// First the logits are edited: mask, biases, then penalties over the tokens of the history (a
/// positive logit is divided by repetition_penalty, another multiplied, if the token is anywhere in
/// it; frequency_penalty times its number of times and presence_penalty once are subtracted, if it
/// was generated). Then they are scaled by the temperature, and the filters apply in the order
/// min_p, top_k, top_p, typical_p.
struct SamplingRow {
  float temperature = 0;  // 0: greedy, ties to the lower id
  int32_t top_k = 0;      // keep the k most likely; 0: all
  float top_p = 1;        // then the smallest set of most likely tokens whose probability reaches p
  float min_p = 0;        // first drop tokens less likely than min_p times the most likely
  // Last, of the rest: the smallest set of the tokens whose information is nearest to the entropy
  // and whose probability reaches typical_p (arXiv 2202.00666). 1: all.
  float typical_p = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;   // > 0
  int32_t forced_token = -1;      // >= 0: no choice, this token (its logprob is wanted)
  int32_t top_logprobs = -1;      // -1: no logprobs at all; n: this many alternatives
  int32_t slot = 0;               // the sequence's row of the history
  int32_t num_prompt_tokens = 0;  // of the history; those from there to `position` were generated
  int32_t first_bias = 0;         // of SamplingInputs::biases
  int32_t num_biases = 0;
  int32_t mask = -1;     // row of SamplingInputs::masks; -1: every token is allowed
  int32_t recorded = 0;  // 1: history[slot, position] = the chosen token, for the next step
  uint64_t seed = 0;     // key of the counter-based generator
  int64_t position = 0;  // its counter: index of the chosen token in its sequence
};

/// What Ops::Sample gives for one row. Plain data, copied from the device.
struct SampledRow {
  static constexpr int32_t kNotFinite = -1;    // the logits held a NaN or +inf
  static constexpr int32_t kNoneAllowed = -2;  // mask and biases leave no token

  int32_t token_id = kNotFinite;  // or one of the above: nothing was chosen
  float logprob = 0;              // log softmax of the logits before any edit, at token_id
  // By falling logprob, ties to the lower id; -1 after the last one: that of row.top_logprobs, or
  // of the vocabulary.
  std::array<int32_t, kMaxTopLogprobs> top_ids = NoTokens();
  std::array<float, kMaxTopLogprobs> top_logprobs = {};

  static constexpr std::array<int32_t, kMaxTopLogprobs> NoTokens() {
    std::array<int32_t, kMaxTopLogprobs> ids;
    ids.fill(-1);
    return ids;
  }
};

}  // namespace shoal
