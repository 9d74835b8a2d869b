// TokenStream: the way of generated tokens from the engine thread to one reader, without locks.
#pragma once

#include <absl/status/status.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace shoal {

/// A token that might have been, with the natural logarithm of its probability.
struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
};

/// One token of a prompt or completion.
struct TokenOutput {
  int32_t token_id = 0;
  float logprob = 0;                            // 0 unless logprobs were asked for
  std::vector<TokenLogprob> top_logprobs = {};  // by falling logprob; as many as were asked for,
                                                // or as there are
  std::chrono::steady_clock::time_point time = {};  // when the engine appended it; epoch: prompt
};

enum class FinishReason : uint8_t {
  kStop,    // a stop token was generated; it is the last token
  kLength,  // max_tokens generated
  kCancel,  // cancelled by the client's side
  kError,  // see FinishInfo::status; DEADLINE_EXCEEDED: no time was left; FAILED_PRECONDITION: mask
           // and biases left no token
};

/// How a request ended and what it used.
struct FinishInfo {
  FinishReason reason = FinishReason::kError;
  absl::Status status = {};       // not OK iff reason is kError
  int32_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  std::chrono::steady_clock::time_point first_scheduled = {};  // left the queue; epoch: never did
};

/// Append-only buffers, sized before the first token, so that the engine never waits and never
/// reallocates. One writer (engine thread), one reader (any one thread at a time).
class TokenStream {
 public:
  /// Makes room. Called once, before the engine thread has the request.
  void Reserve(size_t num_prompt_logprobs, size_t max_tokens);

  /// Called by the engine thread after every change; must be quick and must not throw. Set before
  /// the request is submitted.
  void SetWake(std::function<void()> wake) { wake_ = std::move(wake); }

  // Reader.
  /// Logprobs of the prompt's tokens available so far; [0] belongs to the first token and is always
  /// 0.
  std::span<const TokenOutput> prompt() const;
  /// Tokens generated so far.
  std::span<const TokenOutput> tokens() const;
  /// How the request ended, or null while it runs. Once set, tokens() is complete.
  const FinishInfo* finish() const;

  // Writer.
  void AppendPrompt(TokenOutput output);
  void Append(TokenOutput output);
  void Finish(FinishInfo info);
  /// Calls the wake function once for all changes since the last call.
  void Notify();

 private:
  std::vector<TokenOutput> prompt_;
  std::vector<TokenOutput> tokens_;
  std::atomic<size_t> num_prompt_{0};
  std::atomic<size_t> num_tokens_{0};
  FinishInfo finish_;
  std::atomic<bool> finished_{false};
  bool changed_ = false;
  std::function<void()> wake_;
};

}  // namespace shoal
