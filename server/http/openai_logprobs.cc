#include "server/http/openai_logprobs.h"

#include <algorithm>
#include <set>
#include <utility>

#include "server/http/json_writer.h"

namespace shoal {
namespace {

using Token = GenerationDelta::Token;

std::string JsonBytes(std::string_view bytes) {
  std::string json = "[";
  for (const char byte : bytes) {
    json += fmt::format("{}{}", json.size() > 1 ? "," : "", static_cast<unsigned char>(byte));
  }
  return json + "]";
}

/// {"token", "logprob", "bytes", without the closing brace.
std::string ChatEntry(std::string_view bytes, float logprob) {
  return fmt::format(R"({{"token":{},"logprob":{},"bytes":{})", JsonString(TokenText(bytes)),
                     JsonLogprob(logprob), JsonBytes(bytes));
}

/// {"text": logprob, ...} of the token and its alternatives, by falling logprob.
std::string TopLogprobsMap(const Token& token, const Tokenizer& tokenizer) {
  std::vector<TokenLogprob> entries = token.top_logprobs;
  const auto is_token = [&](const TokenLogprob& entry) { return entry.token_id == token.token_id; };
  if (std::none_of(entries.begin(), entries.end(), is_token)) {
    entries.push_back({token.token_id, *token.logprob});
  }
  const std::string token_text = TokenText(token.bytes);
  std::set<std::string> keys;
  std::string json = "{";
  for (const TokenLogprob& entry : entries) {
    std::string key = TokenText(tokenizer.TokenBytes(entry.token_id));
    // The token keeps its text as key even if a better one has the same.
    const bool is_taken = !is_token(entry) && key == token_text;
    if (is_taken || !keys.insert(key).second) key = fmt::format("token_id:{}", entry.token_id);
    const float logprob = is_token(entry) ? *token.logprob : entry.logprob;
    json +=
        fmt::format("{}{}:{}", json.size() > 1 ? "," : "", JsonString(key), JsonLogprob(logprob));
  }
  return json + "}";
}

}  // namespace

std::string TokenText(std::string_view bytes) {
  if (IsUtf8(bytes)) return std::string(bytes);
  std::string text = "bytes:";
  for (const char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return text;
}

std::string ChatLogprobs(const std::vector<Token>& tokens, const Tokenizer& tokenizer) {
  std::string content;
  for (const Token& token : tokens) {
    std::string alternatives;
    for (const TokenLogprob& entry : token.top_logprobs) {
      if (!alternatives.empty()) alternatives.push_back(',');
      alternatives += ChatEntry(tokenizer.TokenBytes(entry.token_id), entry.logprob) + "}";
    }
    if (!content.empty()) content.push_back(',');
    content += fmt::format(R"({},"top_logprobs":[{}]}})",
                           ChatEntry(token.bytes, token.logprob.value_or(0)), alternatives);
  }
  return fmt::format(R"({{"content":[{}],"refusal":null}})", content);
}

std::string CompletionLogprobs(const std::vector<Token>& tokens, const Tokenizer& tokenizer) {
  std::string texts, logprobs, tops, offsets;
  for (const Token& token : tokens) {
    const char* comma = texts.empty() ? "" : ",";
    texts += comma + JsonString(TokenText(token.bytes));
    logprobs += comma + (token.logprob ? JsonLogprob(*token.logprob) : "null");
    tops += comma + (token.logprob ? TopLogprobsMap(token, tokenizer) : "null");
    offsets += fmt::format("{}{}", comma, token.text_offset);
  }
  return fmt::format(
      R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})", texts,
      logprobs, tops, offsets);
}

}  // namespace shoal
