// GenerationService: the one use case behind every front end. Text in, text out; no wire format.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

/// One prompt and what is wanted of it. The front end has checked types; Start() checks ranges.
struct GenerateCall {
  using Conversation = std::vector<ChatMessage>;
  using TokenIds = std::vector<int32_t>;

  std::string request_id;
  std::variant<std::string, TokenIds, Conversation> prompt;  // text gets BOS, token ids do not
  int n = 1;                             // choices, 1 to 16
  std::optional<int64_t> max_tokens;     // none: up to the model's length
  float temperature = 1;                 // [0, 2]
  float top_p = 1;                       // (0, 1]
  int32_t top_k = 0;                     // 0 or -1: all
  float min_p = 0;                       // [0, 1]
  std::optional<uint64_t> seed;          // none: a random one
  std::vector<std::string> stop;         // at most 16, 1 to 256 bytes each; not part of the text
  std::vector<int32_t> stop_token_ids;   // at most 16
  bool ignore_eos = false;
  bool echo = false;                     // the text begins with the prompt
  bool skip_special_tokens = true;
  std::optional<int32_t> logprobs;       // alternatives per token, 0 to 20; with echo also of the prompt
};

/// Text and tokens that a choice gained.
struct GenerationDelta {
  struct Token {
    int32_t token_id = 0;
    std::string bytes;                     // what the token stands for; may be part of a code point
    std::optional<float> logprob;          // none: not asked for, or first token of the prompt
    std::vector<TokenLogprob> top_logprobs;
    size_t text_offset = 0;                // bytes of the choice's text before this token
  };

  int index = 0;      // choice
  std::string text;   // whole code points
  std::vector<Token> tokens;
  std::optional<FinishReason> finish_reason;  // set in the choice's last delta
  absl::Status status;                        // why, if that is kError
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};

/// All choices of one call. Destroying it cancels what still runs. Thread: one at a time.
class Generation {
 public:
  virtual ~Generation() = default;

  /// What is new since the last call; empty if nothing is.
  virtual std::vector<GenerationDelta> Poll() = 0;
  /// Every choice has delivered its finish_reason.
  virtual bool done() const = 0;
  virtual Usage usage() const = 0;
};

/// Hears of every request's progress. Thread: any.
class GenerationObserver {
 public:
  virtual ~GenerationObserver() = default;
  virtual void OnFirstToken(double seconds_since_arrival, double queue_seconds) = 0;
  virtual void OnNextToken(double seconds_since_previous) = 0;
  virtual void OnFinished(FinishReason reason, double seconds, const Usage& usage) = 0;
};

/// Thread: any.
class GenerationService {
 public:
  /// The arguments outlive the service; `chat_template` may be null (conversations are then refused).
  GenerationService(Engine* engine, const Tokenizer* tokenizer, const ChatTemplate* chat_template,
                    GenerationObserver* observer);

  /// Renders, encodes, submits. `wake` is called from another thread whenever Poll() may have news.
  /// INVALID_ARGUMENT names the field; RESOURCE_EXHAUSTED and UNAVAILABLE as Engine::Submit.
  absl::StatusOr<std::unique_ptr<Generation>> Start(const GenerateCall& call,
                                                    std::function<void()> wake);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate* chat_template() const { return chat_template_; }
  Engine& engine() { return *engine_; }

 private:
  Engine* const engine_;
  const Tokenizer* const tokenizer_;
  const ChatTemplate* const chat_template_;
  GenerationObserver* const observer_;
};

}  // namespace shoal
