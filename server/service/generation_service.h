// GenerationService: the one use case behind every front end. Text in, text out; no wire format.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "server/service/generation.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

/// One prompt and what is wanted of it. The front end has checked types; Start() checks ranges.
struct GenerateCall {
  using Conversation = std::vector<ChatMessage>;
  using TokenIds = std::vector<int32_t>;
  using Prompt = std::variant<std::string, TokenIds, Conversation>;

  std::string request_id;
  Prompt prompt;                        // text gets BOS, token ids do not
  bool add_generation_prompt = true;    // conversations only: the reply comes next
  int n = 1;                            // choices, 1 to 16
  std::optional<int64_t> max_tokens;    // none: up to the model's length
  float temperature = 1;                // [0, 2]
  float top_p = 1;                      // (0, 1]
  int32_t top_k = 0;                    // 0 or -1: all
  float min_p = 0;                      // [0, 1]
  std::optional<uint64_t> seed;         // none: one of the service's
  std::vector<std::string> stop;        // at most 16, 1 to 256 bytes each; not part of the text
  std::vector<int32_t> stop_token_ids;  // at most 16
  bool ignore_eos = false;
  bool echo = false;  // the text begins with the prompt
  bool skip_special_tokens = true;
  std::optional<int32_t> logprobs;  // alternatives per token, 0 to 20; with echo also of the prompt
};

/// Thread: any.
class GenerationService {
 public:
  /// The arguments outlive the service; `chat_template` may be null (conversations are then
  /// refused), and so may `observer`. `seed`: calls without a seed of their own get seeds that
  /// come of it, each another; none: random ones.
  GenerationService(Engine* engine, const Tokenizer* tokenizer, const ChatTemplate* chat_template,
                    GenerationObserver* observer, std::optional<uint64_t> seed = std::nullopt);

  /// Token ids of a prompt: text gets BOS if `add_special_tokens` and the tokenizer says so, a
  /// conversation is rendered. INVALID_ARGUMENT names the field.
  absl::StatusOr<std::vector<int32_t>> Encode(const GenerateCall::Prompt& prompt,
                                              bool add_special_tokens,
                                              bool add_generation_prompt) const;

  /// Renders, encodes, submits. `wake` is called from another thread whenever Poll() may have news,
  /// and never once the Generation is destroyed; it must not destroy it. INVALID_ARGUMENT names the
  /// field; RESOURCE_EXHAUSTED and UNAVAILABLE as Engine::Submit.
  absl::StatusOr<std::unique_ptr<Generation>> Start(const GenerateCall& call,
                                                    std::function<void()> wake);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate* chat_template() const { return chat_template_; }
  Engine& engine() { return *engine_; }

 private:
  absl::Status CheckTokenIds(const char* field, std::span<const int32_t> token_ids) const;
  uint64_t NextSeed();
  absl::StatusOr<int32_t> MaxTokens(const GenerateCall& call, int64_t num_prompt_tokens) const;
  std::vector<int32_t> StopTokenIds(const GenerateCall& call) const;

  Engine* const engine_;
  const Tokenizer* const tokenizer_;
  const ChatTemplate* const chat_template_;
  GenerationObserver* const observer_;
  const std::optional<uint64_t> seed_;
  std::atomic<uint64_t> num_seeds_{0};  // made of seed_
};

}  // namespace shoal
