// Request bodies of the OpenAI API, and of vLLM's /tokenize and /detokenize.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/service/generation_service.h"

namespace shoal {

/// A chat completion (one conversation) or a completion (1 to 64 prompts).
struct OpenAiRequest {
  bool is_chat = false;
  std::string model;  // empty: not given
  std::vector<GenerateCall::Prompt> prompts;
  GenerateCall call;                       // all but request_id and prompt
  bool has_max_completion_tokens = false;  // call.max_tokens is from this field
  bool stream = false;
  bool include_usage = false;           // stream ends with a usage chunk
  bool continuous_usage_stats = false;  // and every chunk has the usage so far
};

struct TokenizeRequest {
  std::string model;
  GenerateCall::Prompt prompt;
  bool add_special_tokens = true;
  bool add_generation_prompt = true;
  bool return_token_strs = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
};

/// INVALID_ARGUMENT names the field, what it must be and what it is. Fields that we do not know are
/// ignored; those that we know, cannot do, and that would change the answer are refused unless they
/// are neutral. The last of equal keys counts. Ranges are GenerationService's to check.
absl::StatusOr<OpenAiRequest> ParseChatRequest(std::string_view body);
absl::StatusOr<OpenAiRequest> ParseCompletionRequest(std::string_view body);
absl::StatusOr<TokenizeRequest> ParseTokenizeRequest(std::string_view body);
absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body);

}  // namespace shoal
