// Generation: the running choices of one call, as text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

/// Text and tokens that a choice gained.
struct GenerationDelta {
  struct Token {
    int32_t token_id = 0;
    std::string bytes;             // what the token stands for; may be part of a code point
    std::optional<float> logprob;  // none: not asked for, or first token of the prompt
    std::vector<TokenLogprob> top_logprobs;
    size_t text_offset = 0;  // code points of the choice's text before this token
  };

  int index = 0;     // choice
  std::string text;  // whole code points
  std::vector<Token> tokens;
  std::optional<FinishReason> finish_reason;  // set in the choice's last delta
  /// What the client asked to stop at: a stop string or one of its stop_token_ids.
  std::variant<std::monostate, std::string, int32_t> stop_reason;
  absl::Status status;  // why, if finish_reason is kError

  /// Takes in what `next`, the choice's next delta, says.
  void Append(GenerationDelta next);
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};

/// Hears of every request's progress. Thread: any.
class GenerationObserver {
 public:
  virtual ~GenerationObserver() = default;
  virtual void OnFirstToken(double seconds_since_arrival) = 0;
  virtual void OnNextToken(double seconds_since_previous) = 0;
  /// `error`: why, if `reason` is kError. `queue_seconds` until it was first scheduled; none if it
  /// never was, or the engine still has it.
  virtual void OnFinished(FinishReason reason, absl::StatusCode error, double seconds_since_arrival,
                          std::optional<double> queue_seconds, const Usage& usage) = 0;
};

/// All choices of one call. Destroying it cancels what still runs. Thread: one at a time.
class Generation {
 public:
  struct Options {
    const Tokenizer* tokenizer = nullptr;
    GenerationObserver* observer = nullptr;  // may be null
    int num_best = 1;  // choices that are given out. If there are more, then all at the end: those
                       // with the highest mean logprob of a token (which the requests ask for),
                       // best first; of equals the first
    std::vector<std::string> stop;
    std::vector<int32_t> stop_token_ids;  // the client's own, for stop_reason
    bool logprobs = false;                // are given out
    bool echo = false;
    bool skip_special_tokens = true;
    bool strip_leading_space = false;  // of the completion's text, one
  };

  /// `requests` are the choices. `wake` is called from the engine thread and never after the
  /// destructor returned.
  Generation(Options options, std::vector<std::shared_ptr<Request>> requests,
             std::function<void()> wake);
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  /// Begins all choices of `generations`, once. All or none; errors as Engine::Submit.
  static absl::Status Submit(Engine& engine, QueueSlot slot,
                             std::span<const std::unique_ptr<Generation>> generations);

  /// What is new since the last call; empty if nothing is.
  std::vector<GenerationDelta> Poll();
  /// Every choice has delivered its finish_reason.
  bool done() const;
  /// So far; the prompt counts once, completions of all choices are added, given out or not.
  /// cached_tokens is known at the end.
  Usage usage() const;

 private:
  struct Choice;
  class WakeGate;

  void Advance(Choice& choice, std::vector<GenerationDelta>* deltas);
  void PushPrompt(Choice& choice);
  void PushOutput(Choice& choice, std::span<const TokenOutput> tokens);
  std::vector<GenerationDelta> TakeBest(std::vector<GenerationDelta> deltas);
  void ReportToken(Choice& choice, const TokenOutput& token);
  void End(Choice& choice, const FinishInfo& finish, GenerationDelta* delta);
  void Report(const Choice& choice, FinishReason reason, const FinishInfo* finish);
  static double MeanLogprob(const Choice& choice);

  const Options options_;
  const std::shared_ptr<WakeGate> wake_;
  std::vector<std::shared_ptr<Request>> requests_;  // until they are submitted
  std::vector<std::unique_ptr<Choice>> choices_;    // from then on
};

}  // namespace shoal
