// Logprobs in the two shapes of the OpenAI API.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/service/generation_service.h"

namespace shoal {

/// The text of a token, or "bytes:\x.." if it is not UTF-8 by itself.
std::string TokenText(std::string_view bytes);

/// Chat: {"content": [{"token", "logprob", "bytes", "top_logprobs"}]}.
std::string ChatLogprobs(const std::vector<GenerationDelta::Token>& tokens,
                         const Tokenizer& tokenizer);

/// Completions: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, one entry per token.
/// The map of alternatives holds the token itself even if it is not among the best; its value there
/// and in token_logprobs is the same text. A key that another entry has already becomes
/// "token_id:N". Both are null for a prompt's first token.
std::string CompletionLogprobs(const std::vector<GenerationDelta::Token>& tokens,
                               const Tokenizer& tokenizer);

}  // namespace shoal
