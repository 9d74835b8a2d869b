// GenerateCall: one prompt and what is wanted of it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "tokenizer/chat_template.h"

namespace shoal {

/// What a front end makes of a client's request. It has checked types; GenerationService checks
/// ranges. Sampling fields mean what SamplingParams says.
struct GenerateCall {
  using Conversation = std::vector<ChatMessage>;
  using TokenIds = std::vector<int32_t>;
  using Prompt = std::variant<std::string, TokenIds, Conversation>;

  std::string request_id;
  Prompt prompt;                      // text gets BOS, token ids do not
  bool add_generation_prompt = true;  // conversations only: the reply comes next
  int n = 1;                          // choices, 1 to 16
  std::optional<int> best_of;         // choices that are generated, n to 16: the n of them with the
                                      // highest mean logprob of a token are given out, best first
  std::optional<int64_t> max_tokens;  // none: up to the model's length
  int32_t min_tokens = 0;             // before so many, neither stop token nor stop string ends it
  float temperature = 1;              // [0, 2]
  float top_p = 1;                    // (0, 1]
  int32_t top_k = 0;                  // 0 or -1: all
  float min_p = 0;                    // [0, 1]
  float typical_p = 1;                // (0, 1]
  float presence_penalty = 0;         // [-2, 2]
  float frequency_penalty = 0;        // [-2, 2]
  float repetition_penalty = 1;       // (0, 10]
  std::map<int32_t, float> logit_bias;  // by token id, [-100, 100]; at most 1024
  TokenIds allowed_token_ids;     // no other token is generated, EOS included; empty: any may be
  std::optional<uint64_t> seed;   // none: one of the service's
  std::vector<std::string> stop;  // at most 16, 1 to 256 bytes each; not part of the text
  TokenIds stop_token_ids;        // at most 16
  bool ignore_eos = false;
  bool echo = false;  // the text begins with the prompt
  bool skip_special_tokens = true;
  std::optional<int32_t> logprobs;  // alternatives per token, 0 to 20; with echo also of the prompt

  // Who asks, and when it must be done.
  int api_key = 0;         // number of the key that the client has; 0 also if there are none
  std::string user;        // which of the client's own users asks; at most 256 bytes
  std::string cache_salt;  // calls with another one share no prefixes with this; at most 256 bytes
  int32_t priority = 0;    // lower goes first
  Clock::time_point deadline = Clock::time_point::max();

  /// Choices that are generated, of which n are given out.
  int num_generated() const { return best_of.value_or(n); }
};

/// INVALID_ARGUMENT names the field and its range. Not looked at: token ids, and what depends on
/// the length of the prompt.
absl::Status CheckRanges(const GenerateCall& call);

}  // namespace shoal
