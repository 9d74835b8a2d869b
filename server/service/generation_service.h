// GenerationService: the one use case behind every front end. Text in, text out; no wire format.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/service/generate_call.h"
#include "server/service/generation.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

/// Who shares the machine fairly with each other (SchedulingParams::tenant).
enum class FairShare {
  kOff,   // nobody: one queue for all
  kKey,   // the API keys
  kUser,  // the users of each key, as GenerateCall::user names them
};

/// Seed of choice `index` of a call with `seed`. The first is `seed` itself, so choice 0 gets the
/// tokens that a call for one choice gets; those of neighbouring seeds have nothing in common.
uint64_t DeriveSeed(uint64_t seed, uint64_t index);

/// When clients who found the queue full should come again: when it will have drained, as
/// Engine::SecondsToDrain() says. 1 ms to 2 minutes; a second if it is not known (0). There is a
/// place sooner, but not for all who were refused meanwhile.
std::chrono::milliseconds RetryDelay(double seconds_to_drain);

/// Thread: any.
class GenerationService {
 public:
  struct Options {
    /// Calls without a seed of their own get seeds that come of it, each another; none: random
    /// ones.
    std::optional<uint64_t> seed;
    FairShare fair_share = FairShare::kKey;
  };

  /// The pointers outlive the service; `chat_template` may be null (conversations are then
  /// refused), and so may `observer`.
  GenerationService(Engine* engine, const Tokenizer* tokenizer, const ChatTemplate* chat_template,
                    GenerationObserver* observer, const Options& options);

  /// Token ids of a prompt: text gets BOS if `add_special_tokens` and the tokenizer says so, a
  /// conversation is rendered. INVALID_ARGUMENT names the field.
  absl::StatusOr<std::vector<int32_t>> Encode(const GenerateCall::Prompt& prompt,
                                              bool add_special_tokens,
                                              bool add_generation_prompt) const;

  /// Takes the places in the queue that `num_prompts` calls need that differ from `call` in their
  /// prompts alone. These are not looked at: where the queue is full, a bad prompt is answered in
  /// the same way as a good one. INVALID_ARGUMENT names the field, also if the queue could never
  /// hold so many or there are more than 128; RESOURCE_EXHAUSTED and UNAVAILABLE as
  /// Engine::Reserve.
  absl::StatusOr<QueueSlot> Reserve(const GenerateCall& call, int num_prompts = 1);

  /// Renders and encodes the prompt. Nothing waits or runs until Submit(). `wake` is called from
  /// another thread whenever Poll() may have news, and never once the Generation is destroyed; it
  /// must not destroy it. INVALID_ARGUMENT names the field.
  absl::StatusOr<std::unique_ptr<Generation>> Prepare(const GenerateCall& call,
                                                      std::function<void()> wake);
  /// Begins what was prepared, all or none. `slot` is from Reserve(), for the calls that these were
  /// made of. Errors as Engine::Submit.
  absl::Status Submit(QueueSlot slot, std::span<const std::unique_ptr<Generation>> generations);
  /// Reserve(), Prepare() and Submit() of one.
  absl::StatusOr<std::unique_ptr<Generation>> Start(const GenerateCall& call,
                                                    std::function<void()> wake);

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ChatTemplate* chat_template() const { return chat_template_; }
  Engine& engine() { return *engine_; }

 private:
  absl::Status CheckTokenIds(const char* field, std::span<const int32_t> token_ids) const;
  absl::Status CheckAllTokenIds(const GenerateCall& call) const;
  /// Whether there is a first token to generate.
  absl::Status CheckFirstToken(const GenerateCall& call) const;
  uint64_t NextSeed();
  absl::StatusOr<int32_t> MaxTokens(const GenerateCall& call, int64_t num_prompt_tokens) const;
  std::vector<int32_t> StopTokenIds(const GenerateCall& call) const;
  /// All but seed and mask, which each choice has for itself.
  absl::StatusOr<SamplingParams> Sampling(const GenerateCall& call,
                                          int64_t num_prompt_tokens) const;
  SchedulingParams Scheduling(const GenerateCall& call) const;

  Engine* const engine_;
  const Tokenizer* const tokenizer_;
  const ChatTemplate* const chat_template_;
  GenerationObserver* const observer_;
  const Options options_;
  std::atomic<uint64_t> num_seeds_{0};  // made of options_.seed
};

}  // namespace shoal
