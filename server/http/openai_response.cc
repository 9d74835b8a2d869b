#include "server/http/openai_response.h"

#include <utility>

#include "server/http/json_writer.h"
#include "server/http/openai_logprobs.h"

namespace shoal {
namespace {

const char* ErrorType(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

/// The "code" of an error, as JSON.
const char* ErrorCode(int status, std::string_view param) {
  if (status == 401) return R"("invalid_api_key")";
  if (status == 404 && param == "model") return R"("model_not_found")";
  if (status == 429) return R"("rate_limit_exceeded")";
  return "null";
}

const char* FinishReasonJson(const GenerationDelta& delta) {
  if (!delta.finish_reason) return "null";
  return *delta.finish_reason == FinishReason::kLength ? R"("length")" : R"("stop")";
}

std::string StopReasonJson(const GenerationDelta& delta) {
  if (const auto* text = std::get_if<std::string>(&delta.stop_reason)) return JsonString(*text);
  if (const auto* id = std::get_if<int32_t>(&delta.stop_reason)) return fmt::format("{}", *id);
  return "null";
}

std::string UsageJson(const Usage& usage) {
  return fmt::format(R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},)"
                     R"("prompt_tokens_details":{{"cached_tokens":{}}}}})",
                     usage.prompt_tokens, usage.completion_tokens,
                     usage.prompt_tokens + usage.completion_tokens, usage.cached_tokens);
}

std::string TokenIdsJson(const std::vector<int32_t>& ids) {
  return fmt::format("[{}]", fmt::join(ids, ","));
}

}  // namespace

std::string OpenAiErrorBody(int status, std::string_view message, std::string_view param) {
  return fmt::format(R"({{"error":{{"message":{},"type":"{}","param":{},"code":{}}}}})",
                     JsonString(message), ErrorType(status),
                     param.empty() ? "null" : JsonString(param), ErrorCode(status, param));
}

std::vector<std::pair<std::string, std::string>> RetryHeaders(std::chrono::milliseconds delay) {
  const auto seconds = std::chrono::ceil<std::chrono::seconds>(delay);
  return {{"Retry-After", fmt::format("{}", seconds.count())},
          {"retry-after-ms", fmt::format("{}", delay.count())}};
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:  // what was asked for cannot be gone on with
      return 400;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string PublicMessage(const absl::Status& status) {
  return HttpStatusOf(status) == 500 ? "the server failed to answer this request"
                                     : std::string(status.message());
}

OpenAiResponse::OpenAiResponse(OpenAiAnswer answer, const OpenAiRequest* request,
                               const Tokenizer* tokenizer)
    : answer_(std::move(answer)),
      request_(request),
      tokenizer_(tokenizer),
      choices_(request->prompts.size() * static_cast<size_t>(request->call.n)) {}

std::vector<std::string> OpenAiResponse::Chunks(const GenerationDelta& delta, const Usage& usage) {
  Choice& choice = choices_[static_cast<size_t>(delta.index)];
  std::vector<std::string> chunks;
  const bool has_logprobs = request_->call.logprobs && !delta.tokens.empty();
  const bool begins = !choice.begun && delta.finish_reason;
  if (!delta.text.empty() || has_logprobs || begins) {
    const std::string text = JsonString(delta.text);
    const std::string content =
        !request_->is_chat ? fmt::format(R"("text":{})", text)
        : choice.begun     ? fmt::format(R"("delta":{{"content":{}}})", text)
                           : fmt::format(R"("delta":{{"role":"assistant","content":{}}})", text);
    chunks.push_back(
        Chunk(fmt::format(R"({{"index":{},{},"logprobs":{},"finish_reason":null}})", delta.index,
                          content, has_logprobs ? Logprobs(delta.tokens) : "null"),
              usage));
    choice.begun = true;
  }
  if (delta.finish_reason) {
    chunks.push_back(Chunk(
        fmt::format(R"({{"index":{},{},"logprobs":null,"finish_reason":{},"stop_reason":{}}})",
                    delta.index, request_->is_chat ? R"("delta":{})" : R"("text":"")",
                    FinishReasonJson(delta), StopReasonJson(delta)),
        usage));
  }
  return chunks;
}

std::string OpenAiResponse::UsageChunk(const Usage& usage) const {
  return fmt::format(R"({{{},"choices":[],"usage":{}}})",
                     Head(request_->is_chat ? "chat.completion.chunk" : "text_completion"),
                     UsageJson(usage));
}

void OpenAiResponse::Append(GenerationDelta delta) {
  if (!request_->call.logprobs) delta.tokens.clear();  // nobody will look at them
  choices_[static_cast<size_t>(delta.index)].whole.Append(std::move(delta));
}

std::string OpenAiResponse::Body(const Usage& usage) const {
  std::string choices;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const GenerationDelta& whole = choices_[i].whole;
    const std::string text = JsonString(whole.text);
    const std::string content =
        request_->is_chat
            ? fmt::format(R"("message":{{"role":"assistant","content":{},"refusal":null}})", text)
            : fmt::format(R"("text":{})", text);
    choices += fmt::format(
        R"({}{{"index":{},{},"logprobs":{},"finish_reason":{},"stop_reason":{}}})",
        i == 0 ? "" : ",", i, content, request_->call.logprobs ? Logprobs(whole.tokens) : "null",
        FinishReasonJson(whole), StopReasonJson(whole));
  }
  return fmt::format(R"({{{},"choices":[{}],"usage":{}}})",
                     Head(request_->is_chat ? "chat.completion" : "text_completion"), choices,
                     UsageJson(usage));
}

std::string OpenAiResponse::Chunk(std::string_view choice, const Usage& usage) const {
  std::string usage_member;
  if (request_->include_usage) {
    usage_member =
        fmt::format(R"(,"usage":{})", request_->continuous_usage_stats ? UsageJson(usage) : "null");
  }
  return fmt::format(R"({{{},"choices":[{}]{}}})",
                     Head(request_->is_chat ? "chat.completion.chunk" : "text_completion"), choice,
                     usage_member);
}

std::string OpenAiResponse::Head(std::string_view object) const {
  return fmt::format(R"("id":{},"object":"{}","created":{},"model":{},"system_fingerprint":{})",
                     JsonString(answer_.id), object, answer_.created, JsonString(answer_.model),
                     JsonString(answer_.system_fingerprint));
}

std::string OpenAiResponse::Logprobs(const std::vector<GenerationDelta::Token>& tokens) const {
  return request_->is_chat ? ChatLogprobs(tokens, *tokenizer_)
                           : CompletionLogprobs(tokens, *tokenizer_);
}

std::string ModelListBody(const std::vector<std::string>& names, int64_t created,
                          int32_t max_model_len) {
  std::string data;
  for (const std::string& name : names) {
    if (!data.empty()) data.push_back(',');
    data += ModelBody(name, names[0], created, max_model_len);
  }
  return fmt::format(R"({{"object":"list","data":[{}]}})", data);
}

std::string ModelBody(std::string_view name, std::string_view root, int64_t created,
                      int32_t max_model_len) {
  return fmt::format(
      R"({{"id":{},"object":"model","created":{},"owned_by":"shoal","root":{},"parent":null,)"
      R"("max_model_len":{}}})",
      JsonString(name), created, JsonString(root), max_model_len);
}

std::string TokenizeBody(const std::vector<int32_t>& tokens, int32_t max_model_len,
                         const std::vector<std::string>* token_strings) {
  std::string strings = "null";
  if (token_strings != nullptr) {
    strings = "[";
    for (const std::string& text : *token_strings) {
      if (strings.size() > 1) strings.push_back(',');
      strings += JsonString(text);
    }
    strings.push_back(']');
  }
  return fmt::format(R"({{"count":{},"max_model_len":{},"tokens":{},"token_strs":{}}})",
                     tokens.size(), max_model_len, TokenIdsJson(tokens), strings);
}

std::string DetokenizeBody(std::string_view text) {
  return fmt::format(R"({{"prompt":{}}})", JsonString(text));
}

}  // namespace shoal
