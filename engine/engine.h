// Engine: requests in, token streams out. The one door to everything below.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/kvcache/block_pool.h"
#include "engine/model/model_config.h"
#include "engine/request/request.h"
#include "engine/scheduler/scheduler.h"

namespace shoal {

class Worker;

/// How to load a model and how much to run at once.
struct EngineConfig {
  std::string model_directory;  // checkpoint in Hugging Face layout
  std::string dtype = "auto";   // "bfloat16", "float32", or "auto": config.json's torch_dtype, but
                                // float16 is computed as bfloat16
  std::string device = "cpu";   // "auto" or "cpu"
  int threads = 0;              // compute threads; 0: one per core
  int expert_parallel = 1;      // ranks
  int32_t max_model_len = 0;    // 0: the model's max_position_embeddings
  int32_t max_num_seqs = 64;    // sequences that run at once
  int32_t max_num_batched_tokens = 512;   // tokens per step
  int32_t max_num_queued_requests = 256;  // waiting beyond the running ones
  int32_t block_size = 16;                // tokens per KV block
  bool enable_prefix_caching = true;
  int64_t kv_cache_memory_bytes = 0;  // 0: automatic
  int64_t vocab_limit = 0;            // the tokenizer's size; 0: vocab_size

  /// INVALID_ARGUMENT names the field and its range.
  absl::Status Validate() const;
};

/// How far start-up has come. `fraction` in [0, 1] within the phase.
struct LoadStatus {
  std::string phase;  // "starting", "loading weights", "ready"
  double fraction = 0;
};

/// A snapshot of the engine. Counters count since the start.
struct EngineStats {
  SchedulerStats scheduler;
  BlockPoolStats blocks;
  int64_t num_steps = 0;
  int64_t prompt_tokens = 0;  // computed or found in the cache
  int64_t generation_tokens = 0;
  int64_t last_step_tokens = 0;  // of the step that runs or ran last
};

/// Owns the engine thread and the workers. Thread: any.
class Engine {
 public:
  /// Loads the model; blocks until it is ready. `on_progress` is called from another thread.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineConfig& config, std::function<void(const LoadStatus&)> on_progress);
  /// Ends what runs with kError (UNAVAILABLE), then stops the threads.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues a request; its stream then gets tokens and an end. INVALID_ARGUMENT: it can never fit,
  /// or a token id or a sampling parameter is out of range. RESOURCE_EXHAUSTED: the queue is full.
  /// UNAVAILABLE: draining, or the device failed.
  absl::Status Submit(std::shared_ptr<Request> request);

  /// Refuses new requests from now on; returns when all others have ended. Those still running at
  /// `deadline` end with UNAVAILABLE.
  void Drain(Clock::time_point deadline);

  EngineStats Stats() const;
  /// OK while the engine works; else why it cannot any more. Thread: any.
  absl::Status health() const;
  const ModelConfig& model_config() const { return model_; }
  /// Tokens that one sequence may have, prompt and output.
  int32_t max_model_len() const { return max_model_len_; }

 private:
  Engine(const EngineConfig& config, const ModelConfig& model, int32_t max_model_len,
         std::unique_ptr<Worker> worker);
  absl::Status CheckRequest(const Request& request) const;

  // The engine thread.
  void Run();
  bool TakeInbox();
  void Step();

  // Under mutex_.
  bool IsIdle() const;
  void AbortAll(const absl::Status& why);
  void PublishQueues();

  const EngineConfig config_;
  const ModelConfig model_;
  const int32_t max_model_len_;

  // Of the engine thread alone.
  const std::unique_ptr<Worker> worker_;
  BlockPool block_pool_;
  Scheduler scheduler_;

  mutable std::mutex mutex_;          // guards what follows; never held during a step
  std::condition_variable work_;      // for the engine thread, while it is idle
  std::condition_variable all_done_;  // for Drain()
  std::vector<std::shared_ptr<Request>> inbox_;
  EngineStats stats_;      // of the last step; what was taken from the inbox since then waits
  absl::Status health_;    // not OK: the device failed
  absl::Status refusal_;   // not OK: the answer to every new request
  absl::Status abort_;     // not OK: every request ends with it before the next step
  bool stopping_ = false;  // the engine thread is to end

  std::thread thread_;
};

}  // namespace shoal
