// Engines over a small checkpoint, and calls whose end can be waited for.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {

using Tokens = std::vector<int32_t>;

inline constexpr int32_t kLong = 4000;  // tokens; far more than a test has the time to generate
inline constexpr int64_t kBytesPerToken =
    3 * 2 * 2 * 16 * 2;  // layers, K and V, heads, head_dim, bytes

inline EngineConfig SmallConfig() {
  EngineConfig config;
  config.model_directory = SmallCheckpoint();
  config.threads = 1;
  return config;
}

inline std::unique_ptr<Engine> MakeEngine(const EngineConfig& config) {
  auto engine = Engine::Create(config, [](const LoadStatus&) {});
  SHOAL_CHECK(engine.ok(), "{}", engine.status().ToString());
  return *std::move(engine);
}

inline Tokens Prompt(int32_t size, int32_t first = 2) {
  Tokens tokens;
  for (int32_t i = 0; i < size; ++i) tokens.push_back((first + i * 7) % 200);
  return tokens;
}

/// A request whose end can be waited for.
class Call {
 public:
  Call(Tokens prompt, SamplingParams sampling, SchedulingParams scheduling = {})
      : request_(std::make_shared<Request>("r", std::move(prompt), std::move(sampling),
                                           std::move(scheduling))) {
    TokenStream& stream = request_->stream();  // calls back, so it is there
    stream.SetWake([&stream, signals = signals_] {
      signals->num_tokens = stream.tokens().size();
      signals->num_tokens.notify_all();
      if (signals->num_tokens == signals->hold_at) signals->holding.wait(true);
      signals->ended = stream.finish() != nullptr;
      signals->ended.notify_all();
    });
  }

  absl::Status Submit(Engine& engine) { return engine.Submit(request_); }
  /// Submits the choices of one prompt.
  static absl::Status Submit(Engine& engine, const std::vector<std::unique_ptr<Call>>& choices) {
    ASSIGN_OR_RETURN(QueueSlot slot, engine.Reserve(static_cast<int>(choices.size())));
    std::vector<std::shared_ptr<Request>> requests;
    requests.reserve(choices.size());
    for (const auto& choice : choices) requests.push_back(choice->request_);
    return engine.Submit(std::move(slot), {std::move(requests)});
  }
  void WaitForToken() { signals_->num_tokens.wait(0); }

  /// From that token on the engine thread stands still, until Release().
  void HoldEngineAt(size_t num_tokens) {
    signals_->holding = true;
    signals_->hold_at = num_tokens;
  }
  void WaitForHold() {
    for (size_t n = 0; n < signals_->hold_at; n = signals_->num_tokens) {
      signals_->num_tokens.wait(n);
    }
  }
  void Release() {
    signals_->holding = false;
    signals_->holding.notify_all();
  }

  const FinishInfo& Wait() {
    signals_->ended.wait(false);
    return *request_->stream().finish();
  }
  Request& request() { return *request_; }

  Tokens tokens() const {
    Tokens tokens;
    for (const TokenOutput& output : request_->stream().tokens()) tokens.push_back(output.token_id);
    return tokens;
  }

 private:
  /// Shared with the engine's thread, which may still be notifying when the call has gone.
  struct Signals {
    std::atomic<size_t> num_tokens = 0;
    std::atomic<bool> ended = false;
    std::atomic<bool> holding = false;
    size_t hold_at = 0;
  };

  const std::shared_ptr<Request> request_;
  const std::shared_ptr<Signals> signals_ = std::make_shared<Signals>();
};

/// Waits until the engine has published that nothing runs.
inline void WaitUntilIdle(Engine& engine) {
  while (engine.Stats().scheduler.num_running + engine.Stats().scheduler.num_waiting > 0) {
    std::this_thread::yield();
  }
}

}  // namespace shoal
