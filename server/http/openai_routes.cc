#include "server/http/openai_routes.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>
#include <utility>

#include "server/http/openai_logprobs.h"
#include "server/http/openai_request.h"
#include "server/service/field_error.h"

namespace shoal {
namespace {

using boost::asio::awaitable;
using Woken = HttpExchange::Woken;

constexpr std::chrono::seconds kPingInterval{15};  // below the usual 60 s of proxies
constexpr std::chrono::milliseconds kDefaultRetryDelay{1000};
constexpr char kTimeoutField[] = "x-request-timeout-ms";
constexpr char kModelPrefix[] = "/v1/models/";

HttpResponse JsonResponse(std::string body) {
  HttpResponse response;
  response.body = std::move(body);
  return response;
}

/// `retry_delay`: when another try may succeed, if the answer is that it may.
HttpResponse ErrorResponse(const absl::Status& status, std::chrono::milliseconds retry_delay) {
  HttpResponse response;
  response.status = HttpStatusOf(status);
  response.body = OpenAiErrorBody(response.status, PublicMessage(status), FieldOf(status));
  if (response.status == 429 || response.status == 503) {
    response.headers = RetryHeaders(retry_delay);
  } else if (response.status >= 500) {
    // What failed once, or took too long, would do so again, and clients retry by themselves.
    response.headers.emplace_back("x-should-retry", "false");
  }
  return response;
}

/// What the client is not told of goes to the log.
void NoteInternal(HttpExchange& exchange, const absl::Status& status) {
  if (HttpStatusOf(status) == 500) exchange.NoteError(std::string(status.message()));
}

awaitable<void> RespondError(HttpExchange& exchange, absl::Status status,
                             std::chrono::milliseconds retry_delay = kDefaultRetryDelay) {
  NoteInternal(exchange, status);
  co_await exchange.Respond(ErrorResponse(status, retry_delay));
}

HttpResponse EventStreamHead() {
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  return head;
}

void AppendEvent(std::string* events, std::string_view data) {
  events->append("data: ").append(data).append("\n\n");
}

/// The generations of a request's prompts; their choices are numbered through.
class PromptBatch {
 public:
  /// Queues all or none. The places in the queue come first: if it is full, refusals are the most
  /// frequent answer, so they go out before a prompt is looked at, be it good or bad.
  absl::Status Start(GenerationService* service, OpenAiRequest& request, const std::string& id,
                     const std::function<void()>& wake) {
    GenerateCall& call = request.call;
    num_choices_ = call.n;
    const int num_prompts = static_cast<int>(request.prompts.size());
    ASSIGN_OR_RETURN(QueueSlot slot, service->Reserve(call, num_prompts));
    const bool is_single = num_prompts == 1;
    for (size_t i = 0; i < request.prompts.size(); ++i) {
      call.request_id = is_single ? id : fmt::format("{}-{}", id, i);
      call.prompt = std::move(request.prompts[i]);
      ASSIGN_OR_RETURN(auto generation, service->Prepare(call, wake));
      generations_.push_back(std::move(generation));
    }
    return service->Submit(std::move(slot), generations_);
  }

  std::vector<GenerationDelta> Poll() {
    std::vector<GenerationDelta> all;
    for (size_t i = 0; i < generations_.size(); ++i) {
      for (GenerationDelta& delta : generations_[i]->Poll()) {
        delta.index += static_cast<int>(i) * num_choices_;
        all.push_back(std::move(delta));
      }
    }
    return all;
  }

  bool done() const {
    return std::all_of(generations_.begin(), generations_.end(),
                       [](const auto& generation) { return generation->done(); });
  }

  Usage usage() const {
    Usage sum;
    for (const auto& generation : generations_) {
      const Usage usage = generation->usage();
      sum.prompt_tokens += usage.prompt_tokens;
      sum.completion_tokens += usage.completion_tokens;
      sum.cached_tokens += usage.cached_tokens;
    }
    return sum;
  }

 private:
  int num_choices_ = 1;  // per prompt
  std::vector<std::unique_ptr<Generation>> generations_;
};

/// Collects everything, then answers. If the client goes the batch goes, and so its requests.
awaitable<void> RespondWhole(HttpExchange& exchange, PromptBatch& batch, OpenAiResponse& response) {
  while (true) {
    for (GenerationDelta& delta : batch.Poll()) {
      if (!delta.status.ok()) {
        co_await RespondError(exchange, delta.status);
        co_return;
      }
      response.Append(std::move(delta));
    }
    if (batch.done()) break;
    const Woken woken = co_await exchange.Wait(kPingInterval);
    if (woken == Woken::kClientGone) co_return;
  }
  co_await exchange.Respond(JsonResponse(response.Body(batch.usage())));
}

/// The events for what the batch has new. False: that was an error, and the end.
bool PollEvents(HttpExchange& exchange, PromptBatch& batch, OpenAiResponse& response,
                std::string* events) {
  for (const GenerationDelta& delta : batch.Poll()) {
    if (!delta.status.ok()) {
      NoteInternal(exchange, delta.status);
      AppendEvent(events, OpenAiErrorBody(HttpStatusOf(delta.status), PublicMessage(delta.status),
                                          FieldOf(delta.status)));
      return false;
    }
    for (const std::string& chunk : response.Chunks(delta, batch.usage())) {
      AppendEvent(events, chunk);
    }
  }
  return true;
}

/// Server-sent events; the status line is out before the first token, so errors come as events too.
awaitable<void> RespondStream(HttpExchange& exchange, PromptBatch& batch, OpenAiResponse& response,
                              bool include_usage) {
  bool is_open = co_await exchange.BeginStream(EventStreamHead());
  auto next_ping = Clock::now() + kPingInterval;
  while (is_open) {
    std::string events;
    const bool is_good = PollEvents(exchange, batch, response, &events);
    const bool is_last = !is_good || batch.done();
    if (is_last) {
      if (is_good && include_usage) AppendEvent(&events, response.UsageChunk(batch.usage()));
      AppendEvent(&events, "[DONE]");
    } else if (events.empty() && Clock::now() >= next_ping) {
      events = ": ping\n\n";
    }
    if (!events.empty()) {
      is_open = co_await exchange.Write(events);
      next_ping = Clock::now() + kPingInterval;
    }
    if (is_last) break;
    const auto timeout = std::chrono::ceil<std::chrono::milliseconds>(next_ping - Clock::now());
    const Woken woken = co_await exchange.Wait(timeout);
    if (woken == Woken::kClientGone) co_return;
  }
  if (is_open) co_await exchange.EndStream();
}

/// The service knows max_tokens only; the client has sent max_completion_tokens.
absl::Status UnderNewName(const absl::Status& status) {
  constexpr std::string_view kOld = "max_tokens", kNew = "max_completion_tokens";
  const std::string field = FieldOf(status);
  if (field != kOld && field != "min_tokens") return status;  // which is held against it
  std::string message(status.message());
  const size_t at = message.find(kOld);
  if (at != message.npos) message.replace(at, kOld.size(), kNew);
  return FieldError(field == kOld ? kNew : field, message, status.code());
}

class OpenAiApi {
 public:
  OpenAiApi(GenerationService* service, const OpenAiOptions& options)
      : service_(service), options_(options) {}

  awaitable<void> Generate(HttpExchange& exchange, bool is_chat) const {
    const HttpRequest& http = exchange.request();
    absl::StatusOr<OpenAiRequest> request =
        is_chat ? ParseChatRequest(http.body) : ParseCompletionRequest(http.body);
    const std::string id = (is_chat ? "chatcmpl-" : "cmpl-") + http.request_id;
    PromptBatch batch;
    absl::Status status = request.status();
    if (status.ok()) status = Start(exchange, *request, id, batch);
    if (!status.ok()) {
      if (request.ok() && request->has_max_completion_tokens) status = UnderNewName(status);
      co_await RespondError(exchange, status, RetryDelayOf(status));
      co_return;
    }
    const std::string& model =
        request->model.empty() ? options_.served_model_names[0] : request->model;
    OpenAiResponse response({id, std::time(nullptr), model, options_.system_fingerprint}, &*request,
                            &service_->tokenizer());
    if (request->stream) {
      co_await RespondStream(exchange, batch, response, request->include_usage);
    } else {
      co_await RespondWhole(exchange, batch, response);
    }
  }

  absl::StatusOr<std::string> Models(const HttpRequest&) const {
    return ModelListBody(options_.served_model_names, options_.created, max_model_len());
  }

  absl::StatusOr<std::string> Model(const HttpRequest& request) const {
    const std::string name = request.path.substr(std::size(kModelPrefix) - 1);
    RETURN_IF_ERROR(CheckModel(name));
    return ModelBody(name, options_.served_model_names[0], options_.created, max_model_len());
  }

  absl::StatusOr<std::string> Tokenize(const HttpRequest& http) const {
    ASSIGN_OR_RETURN(const TokenizeRequest request, ParseTokenizeRequest(http.body));
    RETURN_IF_ERROR(CheckModel(request.model));
    ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                     service_->Encode(request.prompt, request.add_special_tokens,
                                      request.add_generation_prompt));
    if (!request.return_token_strs) return TokenizeBody(tokens, max_model_len(), nullptr);
    std::vector<std::string> strings;
    strings.reserve(tokens.size());
    for (const int32_t id : tokens) {
      strings.push_back(TokenText(service_->tokenizer().TokenBytes(id)));
    }
    return TokenizeBody(tokens, max_model_len(), &strings);
  }

  absl::StatusOr<std::string> Detokenize(const HttpRequest& http) const {
    ASSIGN_OR_RETURN(const DetokenizeRequest request, ParseDetokenizeRequest(http.body));
    RETURN_IF_ERROR(CheckModel(request.model));
    return DetokenizeBody(
        service_->tokenizer().Decode(request.tokens, /*skip_special_tokens=*/false));
  }

 private:
  absl::Status Start(HttpExchange& exchange, OpenAiRequest& request, const std::string& id,
                     PromptBatch& batch) const {
    const HttpRequest& http = exchange.request();
    RETURN_IF_ERROR(CheckModel(request.model));
    ASSIGN_OR_RETURN(request.call.deadline, Deadline(http));
    request.call.api_key = http.api_key;
    return batch.Start(service_, request, id, exchange.wake());
  }

  absl::StatusOr<Clock::time_point> Deadline(const HttpRequest& http) const {
    constexpr int64_t kMaxTimeoutMs = std::numeric_limits<int32_t>::max();
    int64_t timeout_ms = options_.request_timeout.count();
    if (http.timeout_ms) {
      const std::string& text = *http.timeout_ms;
      int64_t asked = 0;
      const char* const end = text.data() + text.size();
      const auto [rest, error] = std::from_chars(text.data(), end, asked);
      if (error != std::errc() || rest != end || asked < 1 || asked > kMaxTimeoutMs) {
        return FieldError(
            kTimeoutField,
            fmt::format("the header {} must be an integer from 1 to {}, but is \"{}\"",
                        kTimeoutField, kMaxTimeoutMs, text.substr(0, 32)));
      }
      timeout_ms = timeout_ms == 0 ? asked : std::min(asked, timeout_ms);
    }
    if (timeout_ms == 0) return Clock::time_point::max();
    return http.arrival + std::chrono::milliseconds(timeout_ms);
  }

  std::chrono::milliseconds RetryDelayOf(const absl::Status& status) const {
    return absl::IsResourceExhausted(status) ? RetryDelay(service_->engine().SecondsToDrain())
                                             : kDefaultRetryDelay;
  }

  /// An empty name means the only model there is.
  absl::Status CheckModel(const std::string& name) const {
    const std::vector<std::string>& names = options_.served_model_names;
    if (name.empty() || std::find(names.begin(), names.end(), name) != names.end()) {
      return absl::OkStatus();
    }
    return FieldError("model", fmt::format("the model \"{}\" does not exist", name),
                      absl::StatusCode::kNotFound);
  }

  int32_t max_model_len() const { return service_->engine().max_model_len(); }

  GenerationService* const service_;
  const OpenAiOptions options_;
};

using Api = std::shared_ptr<const OpenAiApi>;

HttpHandler GenerateHandler(Api api, bool is_chat) {
  return [api, is_chat](HttpExchange& exchange) { return api->Generate(exchange, is_chat); };
}

/// For what is answered at once.
HttpHandler BodyHandler(Api api,
                        absl::StatusOr<std::string> (OpenAiApi::*body)(const HttpRequest&) const) {
  return [api, body](HttpExchange& exchange) {
    absl::StatusOr<std::string> result = (*api.*body)(exchange.request());
    return result.ok() ? exchange.Respond(JsonResponse(*std::move(result)))
                       : RespondError(exchange, result.status());
  };
}

}  // namespace

std::vector<HttpRoute> OpenAiRoutes(GenerationService* service, const OpenAiOptions& options) {
  const auto api = std::make_shared<const OpenAiApi>(service, options);
  std::vector<HttpRoute> routes;
  const auto add = [&](const char* method, const char* path, HttpHandler handler) {
    HttpRoute route;
    route.method = method;
    route.path = path;
    route.handler = std::move(handler);
    routes.push_back(std::move(route));
  };
  add("POST", "/v1/chat/completions", GenerateHandler(api, /*is_chat=*/true));
  add("POST", "/v1/completions", GenerateHandler(api, /*is_chat=*/false));
  add("GET", "/v1/models", BodyHandler(api, &OpenAiApi::Models));
  add("GET", "/v1/models/*", BodyHandler(api, &OpenAiApi::Model));
  add("POST", "/tokenize", BodyHandler(api, &OpenAiApi::Tokenize));
  add("POST", "/detokenize", BodyHandler(api, &OpenAiApi::Detokenize));
  return routes;
}

}  // namespace shoal
