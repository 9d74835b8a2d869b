// Request: what a client asks of the engine, in token ids. Immutable but for the cancel flag.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/request/token_mask.h"
#include "engine/request/token_stream.h"
#include "kernels/ops.h"

namespace shoal {

using Clock = std::chrono::steady_clock;

/// How to choose tokens and when to stop. Engine::Submit checks the ranges. The order of the edits
/// and filters is SamplingRow's.
struct SamplingParams {
  float temperature = 1;         // [0, 2]; 0: greedy
  int32_t top_k = 0;             // >= 0; 0: all
  float top_p = 1;               // (0, 1]
  float min_p = 0;               // [0, 1]
  float typical_p = 1;           // (0, 1]
  float presence_penalty = 0;    // [-2, 2]
  float frequency_penalty = 0;   // [-2, 2]
  float repetition_penalty = 1;  // (0, 10]
  uint64_t seed = 0;             // key of the random numbers; equal seeds give equal tokens
  int32_t max_tokens = 0;        // tokens to generate, >= 0; 0: only prompt logprobs
  int32_t min_tokens = 0;        // before so many, no stop token is chosen; [0, max_tokens]
  std::vector<int32_t> stop_token_ids = {};  // the token is part of the output and ends it; at
                                             // most kMaxStopTokenIds
  std::vector<LogitBias> logit_bias = {};    // at most kMaxLogitBiases; those of one token add up
  std::shared_ptr<TokenMask> mask = {};      // null: every token is allowed
  int32_t logprobs = -1;         // alternatives per generated token, <= 20; -1: no logprobs
  int32_t prompt_logprobs = -1;  // alternatives per prompt token, <= 20; -1: no logprobs

  static constexpr size_t kMaxStopTokenIds = 32;
  static constexpr size_t kMaxLogitBiases = 1024;

  /// Choosing needs the tokens before, beyond what the logits know of them.
  bool needs_history() const {
    return presence_penalty != 0 || frequency_penalty != 0 || repetition_penalty != 1;
  }
};

/// When a request's turn is, and with whom it shares.
struct SchedulingParams {
  int32_t priority = 0;     // lower goes first, as vLLM has it; each step is worth some seconds of
                            // waiting (SchedulerConfig::priority_step), so everybody's turn comes
  std::string tenant = {};  // shares the machine fairly with other tenants; "" is one like any
  std::string cache_domain = {};  // prefixes are shared within a domain only
  Clock::time_point deadline =
      Clock::time_point::max();  // ends with DEADLINE_EXCEEDED from then on
};

/// One prompt, one completion. Submitted once, then shared by the client's side, which reads
/// `stream` and may Cancel(), and the engine, which writes `stream`. Thread: any, within these
/// roles.
class Request {
 public:
  Request(std::string id, std::vector<int32_t> prompt_token_ids, SamplingParams sampling,
          SchedulingParams scheduling = {})
      : id_(std::move(id)),
        prompt_token_ids_(std::move(prompt_token_ids)),
        sampling_(std::move(sampling)),
        scheduling_(std::move(scheduling)),
        arrival_(Clock::now()) {}

  const std::string& id() const { return id_; }
  const std::vector<int32_t>& prompt_token_ids() const { return prompt_token_ids_; }
  const SamplingParams& sampling() const { return sampling_; }
  const SchedulingParams& scheduling() const { return scheduling_; }
  Clock::time_point arrival() const { return arrival_; }
  TokenStream& stream() { return stream_; }
  /// Makes room for all that the stream can get. The ranges of the sampling have been checked.
  void ReserveStream() {
    stream_.Reserve(sampling_.prompt_logprobs >= 0 ? prompt_token_ids_.size() : 0,
                    static_cast<size_t>(sampling_.max_tokens));
  }

  /// Asks the engine to stop; its blocks are free by the end of the next step. Idempotent.
  void Cancel() { cancelled_.store(true, std::memory_order_release); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  /// Cancel(), because the client's side has all that it wants: the request has come to its end.
  void Complete() {
    completed_.store(true, std::memory_order_relaxed);
    Cancel();
  }
  bool completed() const { return completed_.load(std::memory_order_relaxed); }

 private:
  const std::string id_;
  const std::vector<int32_t> prompt_token_ids_;
  const SamplingParams sampling_;
  const SchedulingParams scheduling_;
  const Clock::time_point arrival_;
  TokenStream stream_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> completed_{false};
};

}  // namespace shoal
