#include "server/http/openai_request.h"

#include <limits>
#include <utility>

#include "server/http/request_fields.h"
#include "server/service/field_error.h"

namespace shoal {
namespace {

using Type = JsonEvent::Type;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kDefaultCompletionTokens = 16;

/// {"include_usage": bool, "continuous_usage_stats": bool}
JsonHandler StreamOptionsField(OpenAiRequest* request) {
  return [include_usage = BoolField(&request->include_usage),
          continuous = BoolField(&request->continuous_usage_stats),
          request](const JsonEvent& event) -> std::string {
    if (event.type == Type::kEnd) return "";
    if (event.depth == 1) {
      request->include_usage = request->continuous_usage_stats = false;
      return event.type == Type::kObject || event.type == Type::kNull ? "" : "an object";
    }
    if (event.depth == 2 && event.key == "include_usage") return include_usage(event);
    if (event.depth == 2 && event.key == "continuous_usage_stats") return continuous(event);
    return "";
  };
}

/// Only {"type": "text"}.
JsonHandler ResponseFormatField() {
  return [](const JsonEvent& event) -> std::string {
    if (event.depth == 1) {
      const bool is_object = event.type == Type::kObject || event.type == Type::kEnd;
      return is_object || event.type == Type::kNull ? "" : "an object";
    }
    if (event.depth != 2 || event.key != "type") return "";
    const bool is_text = event.type == Type::kString && *event.string == "text";
    return is_text ? "" : "\"text\" (other formats are not supported)";
  };
}

/// Only ["text"], or none.
JsonHandler ModalitiesField() {
  return [](const JsonEvent& event) -> std::string {
    if (event.type == Type::kEnd || event.type == Type::kNull) return "";
    if (event.depth == 1) return event.type == Type::kArray ? "" : "an array of strings";
    const bool is_text = event.type == Type::kString && *event.string == "text";
    return is_text ? "" : "\"text\" (others are not supported)";
  };
}

/// Tools may be listed as long as the model is told to use none.
struct Tools {
  bool listed = false;
  std::string choice;  // "auto" if empty

  JsonHandler ListField() {
    return [this](const JsonEvent& event) -> std::string {
      if (event.depth > 1) {
        listed = true;
      } else if (event.type != Type::kEnd) {
        listed = false;
        if (event.type != Type::kArray && event.type != Type::kNull) return "an array";
      }
      return "";
    };
  }

  JsonHandler ChoiceField() {
    return [this](const JsonEvent& event) -> std::string {
      choice = event.type == Type::kString ? *event.string : "";
      if (event.type == Type::kNull || choice == "none" || choice == "auto") return "";
      return "\"none\" or \"auto\" (tools are not supported)";
    };
  }

  absl::Status Check() const {
    if (!listed || choice == "none") return absl::OkStatus();
    return FieldError("tools",
                      "tools must be empty unless tool_choice is \"none\": tools are not "
                      "supported");
  }
};

void AddSamplingFields(RequestFields* fields, OpenAiRequest* request) {
  GenerateCall* call = &request->call;
  fields->Add("model", StringField(&request->model));
  fields->Add("max_tokens", IntegerField(&call->max_tokens, 0, kMaxInt32));
  fields->Add("temperature", FloatField(&call->temperature));
  fields->Add("top_p", FloatField(&call->top_p));
  fields->Add("top_k", IntegerField(&call->top_k));
  fields->Add("min_p", FloatField(&call->min_p));
  fields->Add("typical_p", FloatField(&call->typical_p));
  fields->Add("presence_penalty", FloatField(&call->presence_penalty));
  fields->Add("frequency_penalty", FloatField(&call->frequency_penalty));
  fields->Add("repetition_penalty", FloatField(&call->repetition_penalty));
  fields->Add("logit_bias", LogitBiasField(&call->logit_bias));
  fields->Add("allowed_token_ids", NonEmptyTokenIdsField(&call->allowed_token_ids));
  fields->Add("n", IntegerField(&call->n));
  fields->Add("seed", SeedField(&call->seed));
  fields->Add("stop", StopField(&call->stop));
  fields->Add("stop_token_ids", TokenIdsField(&call->stop_token_ids));
  fields->Add("min_tokens", IntegerField(&call->min_tokens));
  fields->Add("ignore_eos", BoolField(&call->ignore_eos));
  fields->Add("skip_special_tokens", BoolField(&call->skip_special_tokens));
  fields->Add("priority", IntegerField(&call->priority));
  fields->Add("user", StringField(&call->user));
  fields->Add("cache_salt", NonEmptyStringField(&call->cache_salt));
  fields->Add("stream", BoolField(&request->stream));
  fields->Add("stream_options", StreamOptionsField(request));
}

void AddUnsupportedFields(RequestFields* fields) {
  for (const char* name :
       {"use_beam_search", "bad_words", "logits_processors", "include_stop_str_in_output",
        "truncate_prompt_tokens", "prompt_logprobs", "logprob_token_ids", "return_token_ids",
        "return_tokens_as_token_ids", "guided_json", "guided_regex", "guided_choice",
        "guided_grammar", "structured_outputs", "stop_regex", "regex", "json_schema"}) {
    fields->Add(name, EmptyField());
  }
  fields->Add("length_penalty", NeutralField(1.0));
  fields->Add("response_format", ResponseFormatField());
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseChatRequest(std::string_view body) {
  OpenAiRequest request;
  request.is_chat = true;
  GenerateCall& call = request.call;
  bool logprobs = false;
  std::optional<int32_t> top_logprobs;
  std::optional<int64_t> max_completion_tokens;
  Tools tools;

  RequestFields fields;
  AddSamplingFields(&fields, &request);
  AddUnsupportedFields(&fields);
  fields.Add("messages", MessagesField(&request.prompts));
  fields.Add("max_completion_tokens", IntegerField(&max_completion_tokens, 0, kMaxInt32));
  fields.Add("add_generation_prompt", BoolField(&call.add_generation_prompt));
  fields.Add("logprobs", BoolField(&logprobs));
  fields.Add("top_logprobs", IntegerField(&top_logprobs, 0, kMaxTopLogprobs));
  fields.Add("tools", tools.ListField());
  fields.Add("tool_choice", tools.ChoiceField());
  for (const char* name : {"functions", "echo", "continue_final_message", "chat_template",
                           "chat_template_kwargs", "documents", "add_special_tokens", "audio"}) {
    fields.Add(name, EmptyField());
  }
  fields.Add("modalities", ModalitiesField());
  fields.Add("best_of", NeutralField(1.0));
  RETURN_IF_ERROR(fields.Read(body));

  if (request.prompts.empty() || std::get<GenerateCall::Conversation>(request.prompts[0]).empty()) {
    return FieldError("messages", "messages must have at least one message");
  }
  if (top_logprobs.value_or(0) > 0 && !logprobs) {
    return FieldError("top_logprobs", "top_logprobs needs logprobs to be true");
  }
  RETURN_IF_ERROR(tools.Check());
  if (logprobs) call.logprobs = top_logprobs.value_or(0);
  request.has_max_completion_tokens = max_completion_tokens.has_value();
  if (max_completion_tokens) call.max_tokens = max_completion_tokens;
  return request;
}

absl::StatusOr<OpenAiRequest> ParseCompletionRequest(std::string_view body) {
  OpenAiRequest request;
  GenerateCall& call = request.call;
  call.max_tokens = kDefaultCompletionTokens;

  RequestFields fields;
  AddSamplingFields(&fields, &request);
  AddUnsupportedFields(&fields);
  fields.Add("prompt", PromptsField(&request.prompts));
  fields.Add("echo", BoolField(&call.echo));
  fields.Add("logprobs", IntegerField(&call.logprobs));
  fields.Add("best_of", IntegerField(&call.best_of));
  fields.Add("suffix", EmptyField());
  fields.Add("prompt_embeds", EmptyField());
  fields.Add("add_special_tokens", NeutralField(true));
  RETURN_IF_ERROR(fields.Read(body));

  if (request.prompts.empty()) return FieldError("prompt", "prompt must have at least one prompt");
  if (request.stream && call.num_generated() > call.n) {
    return FieldError("best_of", fmt::format("best_of must be n, which is {}, in a stream, but is "
                                             "{}: which choices are best is known at the end only",
                                             call.n, call.num_generated()));
  }
  return request;
}

absl::StatusOr<TokenizeRequest> ParseTokenizeRequest(std::string_view body) {
  TokenizeRequest request;
  std::vector<GenerateCall::Prompt> prompts, conversations;
  RequestFields fields;
  fields.Add("model", StringField(&request.model));
  fields.Add("prompt", PromptsField(&prompts));
  fields.Add("messages", MessagesField(&conversations));
  fields.Add("add_special_tokens", BoolField(&request.add_special_tokens));
  fields.Add("add_generation_prompt", BoolField(&request.add_generation_prompt));
  fields.Add("return_token_strs", BoolField(&request.return_token_strs));
  RETURN_IF_ERROR(fields.Read(body));
  if (!prompts.empty() && !conversations.empty()) {
    return FieldError("messages", "messages must not be given together with prompt");
  }
  if (prompts.empty()) prompts = std::move(conversations);
  if (prompts.size() != 1) {
    return FieldError("prompt", fmt::format("one prompt, or messages, must be given, but there are "
                                            "{} prompts",
                                            prompts.size()));
  }
  request.prompt = std::move(prompts[0]);
  return request;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body) {
  DetokenizeRequest request;
  RequestFields fields;
  fields.Add("model", StringField(&request.model));
  fields.Add("tokens", TokenIdsField(&request.tokens));
  RETURN_IF_ERROR(fields.Read(body));
  if (request.tokens.empty()) {
    return FieldError("tokens", "tokens must have at least one token id");
  }
  return request;
}

}  // namespace shoal
