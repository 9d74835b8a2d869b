// The OpenAI API (and vLLM's /tokenize, /detokenize) over a GenerationService.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "server/http/http_exchange.h"
#include "server/http/openai_response.h"
#include "server/service/generation_service.h"

namespace shoal {

struct OpenAiOptions {
  std::vector<std::string> served_model_names;  // at least one; the first is the one in answers
  int64_t created = 0;                          // Unix time of the server's start, for /v1/models
  std::string system_fingerprint;
  std::chrono::milliseconds request_timeout{0};  // longest that a request may take; 0: any time
};

/// POST /v1/chat/completions, /v1/completions, /tokenize, /detokenize; GET /v1/models,
/// /v1/models/{id}. A header X-Request-Timeout-Ms shortens a completion's time. `service` outlives
/// the handlers.
std::vector<HttpRoute> OpenAiRoutes(GenerationService* service, const OpenAiOptions& options);

}  // namespace shoal
