// Engine: requests in, token streams out. The one door to everything below.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/kvcache/block_pool.h"
#include "engine/model/model_config.h"
#include "engine/request/request.h"
#include "engine/scheduler/scheduler.h"

namespace shoal {

struct EngineConfig {
  std::string model_directory;          // checkpoint in Hugging Face layout
  std::string dtype = "auto";           // "auto" (the checkpoint's), "bfloat16" or "float32"
  std::string device = "cpu";           // "auto" or "cpu"
  int threads = 0;                      // compute threads; 0: one per core
  int expert_parallel = 1;              // ranks
  int32_t max_model_len = 0;            // 0: the model's max_position_embeddings
  int32_t max_num_seqs = 64;            // sequences that run at once
  int32_t max_num_batched_tokens = 512; // tokens per step
  int32_t max_num_queued_requests = 256;  // waiting beyond the running ones
  int32_t block_size = 16;              // tokens per KV block
  bool enable_prefix_caching = true;
  int64_t kv_cache_memory_bytes = 0;    // 0: automatic
  int64_t vocab_limit = 0;              // the tokenizer's size; 0: vocab_size

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
  int64_t prompt_tokens = 0;      // computed or found in the cache
  int64_t generation_tokens = 0;
  int64_t last_step_tokens = 0;
};

/// Owns the engine thread and the workers. Thread: any.
class Engine {
 public:
  /// Loads the model; blocks until it is ready. `on_progress` is called from another thread.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineConfig& config, std::function<void(const LoadStatus&)> on_progress);
  /// Ends what runs with kError (UNAVAILABLE), then stops the threads.
  virtual ~Engine() = default;

  /// Queues a request; its stream then gets tokens and an end. INVALID_ARGUMENT: it can never fit, or a
  /// token id is out of range. RESOURCE_EXHAUSTED: the queue is full. UNAVAILABLE: draining.
  virtual absl::Status Submit(std::shared_ptr<Request> request) = 0;

  /// Refuses new requests from now on; returns when all others have ended. Those still running at
  /// `deadline` end with UNAVAILABLE.
  virtual void Drain(Clock::time_point deadline) = 0;

  virtual EngineStats Stats() const = 0;
  virtual const ModelConfig& model_config() const = 0;
  /// Tokens that one sequence may have, prompt and output.
  virtual int32_t max_model_len() const = 0;
};

}  // namespace shoal
