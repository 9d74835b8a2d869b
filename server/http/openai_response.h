// Response bodies of the OpenAI API, and of vLLM's /tokenize and /detokenize.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/http/openai_request.h"
#include "server/service/generation_service.h"

namespace shoal {

/// Error body in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.
std::string OpenAiErrorBody(int status, std::string_view message, std::string_view param);

/// Headers that say when to try again: Retry-After in seconds, rounded up, and the finer
/// retry-after-ms that OpenAI's clients prefer.
std::vector<std::pair<std::string, std::string>> RetryHeaders(std::chrono::milliseconds delay);

/// The HTTP status for a call that failed, never 200.
int HttpStatusOf(const absl::Status& status);
/// What a client may read of it: our own faults have one fixed text.
std::string PublicMessage(const absl::Status& status);

/// What all answers to one request share.
struct OpenAiAnswer {
  std::string id;       // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  // Unix time
  std::string model;    // as the client wrote it
  std::string system_fingerprint;
};

/// The choices of one request, as chunks of a stream or as one body. Deltas come with the index of
/// the choice in the answer.
class OpenAiResponse {
 public:
  /// `request` and `tokenizer` outlive this.
  OpenAiResponse(OpenAiAnswer answer, const OpenAiRequest* request, const Tokenizer* tokenizer);

  /// The chunks that tell `delta`: one with text, one with the finish reason, or both, or none.
  /// `usage` is the usage so far.
  std::vector<std::string> Chunks(const GenerationDelta& delta, const Usage& usage);
  /// The chunk behind all others, if the client asked for it.
  std::string UsageChunk(const Usage& usage) const;

  /// Collects `delta` for Body().
  void Append(GenerationDelta delta);
  std::string Body(const Usage& usage) const;

 private:
  struct Choice {
    GenerationDelta whole;
    bool begun = false;  // a chunk of it was sent
  };

  std::string Chunk(std::string_view choice, const Usage& usage) const;
  std::string Head(std::string_view object) const;
  std::string Logprobs(const std::vector<GenerationDelta::Token>& tokens) const;

  const OpenAiAnswer answer_;
  const OpenAiRequest* const request_;
  const Tokenizer* const tokenizer_;
  std::vector<Choice> choices_;
};

/// {"object": "list", "data": [...]} or one entry of it. `root` is the first served name.
std::string ModelListBody(const std::vector<std::string>& names, int64_t created,
                          int32_t max_model_len);
std::string ModelBody(std::string_view name, std::string_view root, int64_t created,
                      int32_t max_model_len);

/// `token_strings` may be null.
std::string TokenizeBody(const std::vector<int32_t>& tokens, int32_t max_model_len,
                         const std::vector<std::string>* token_strings);
std::string DetokenizeBody(std::string_view text);

}  // namespace shoal
