// Engine: requests in, token streams out. The one door to everything below.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine_stats.h"
#include "engine/execution/executor.h"
#include "engine/kvcache/block_pool.h"
#include "engine/model/model_config.h"
#include "engine/request/request.h"
#include "engine/scheduler/scheduler.h"

namespace shoal {

/// How to load a model and how much to run at once.
struct EngineConfig {
  std::string model_directory;  // checkpoint in Hugging Face layout
  std::string dtype = "auto";   // "bfloat16", "float32", or "auto": config.json's torch_dtype, but
                                // float16 is computed as bfloat16
  std::string load_format = "auto";  // "auto": the checkpoint's weights; "dummy": random ones, of
                                     // which config.json alone says the shape
  std::string device = "auto";       // "cpu", "cuda", "cuda:N"; "auto": a GPU if there is one
  double gpu_memory_utilization = 0.9;  // share of a GPU's memory that we may take
  bool enforce_eager = false;           // no recorded graphs, also on a GPU
  int threads = 0;                      // compute threads; 0: one per core
  int expert_parallel = 1;              // ranks
  int num_redundant_experts = 0;        // experts that have a second place on another rank
  int32_t max_model_len = 0;            // 0: the model's max_position_embeddings
  std::optional<int32_t> max_num_seqs;  // sequences that run at once, on all ranks together; 64,
                                        // or 256 on a GPU
  std::optional<int32_t> max_num_batched_tokens;  // tokens per step, on all ranks together; 512, or
                                                  // 8192 on a GPU
  int32_t long_prefill_token_threshold = 0;  // prompt tokens of one sequence per step while others
                                             // wait or run; 0: half of max_num_batched_tokens
  int32_t max_num_queued_requests = 256;     // waiting beyond the running ones
  int64_t max_num_queued_tokens = 1 << 20;   // of their prompts
  int32_t priority_step_seconds = 10;        // of waiting that a step of priority is worth
  double schedule_conservativeness = 1;  // of the room that is kept for running sequences to grow:
                                         // below 1 more run at once, but may be preempted; 0 to 10
  std::optional<bool> async_scheduling;  // schedule a step while the one before it runs: for
                                         // devices whose steps are short; who comes in between
                                         // waits a step longer. On a GPU yes
  int32_t num_speculative_tokens = 0;    // drafts per step, found by prompt lookup; 0: off
  int32_t prompt_lookup_min = 2;         // tokens that must recur
  int32_t prompt_lookup_max = 4;         // tokens that are looked for first
  int32_t block_size = 16;               // tokens per KV block
  bool enable_prefix_caching = true;
  int64_t kv_cache_memory_bytes = 0;  // of all ranks together; 0: automatic
  int64_t vocab_limit = 0;            // the tokenizer's size; 0: vocab_size

  /// INVALID_ARGUMENT names the field and its range.
  absl::Status Validate() const;

  /// With what is not set as it is best on a GPU, or on the CPU.
  EngineConfig WithDefaults(bool gpu) const;
};

/// How far start-up has come. `fraction` in [0, 1] within the phase.
struct LoadStatus {
  std::string phase;  // "starting", "planning memory", "loading weights", "ready"
  double fraction = 0;
  std::string memory_plan = {};  // for people: what the memory of a device will be for, if this is
                                 // about that
};

class Engine;

/// A place in the queue, taken before the work of making the requests. Given back unless it is
/// used. Thread: any.
class QueueSlot {
 public:
  QueueSlot() = default;
  QueueSlot(QueueSlot&& other) noexcept { *this = std::move(other); }
  QueueSlot& operator=(QueueSlot&& other) noexcept;
  ~QueueSlot();

 private:
  friend class Engine;
  QueueSlot(Engine* engine, int num_requests) : engine_(engine), num_requests_(num_requests) {}

  Engine* engine_ = nullptr;
  int num_requests_ = 0;
};

/// Owns the engine thread and the executor. Thread: any.
class Engine {
 public:
  /// Loads the model; blocks until it is ready. `on_progress` is called from another thread.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineConfig& config, std::function<void(const LoadStatus&)> on_progress);
  /// An engine whose steps `executor` runs. The configs have been checked.
  static std::unique_ptr<Engine> Create(const EngineConfig& config, const ModelConfig& model,
                                        int32_t max_model_len, std::unique_ptr<Executor> executor);
  /// Ends what runs with kError (UNAVAILABLE), then stops the threads.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// What the model runs on, for people: "cpu" or "cuda:0", and if the config did not say, why.
  const std::string& device() const { return device_; }
  /// What the memory of each rank's device is for.
  std::span<const MemoryPlan> memory_plans() const { return executor_->memory_plans(); }

  /// Takes places in the queue for the choices of one call, before its prompt is even tokenized.
  /// INVALID_ARGUMENT: the queue never holds so many. RESOURCE_EXHAUSTED: it is full. UNAVAILABLE:
  /// draining, or the device failed. The engine outlives the slot.
  absl::StatusOr<QueueSlot> Reserve(int num_requests);

  /// Queues calls: of each its choices, requests that differ in their sampling alone, whose prompt
  /// is computed once. In all as many requests as the slot is for. All or none; each stream then
  /// gets tokens and an end. INVALID_ARGUMENT: one can never fit, or a token id or a sampling
  /// parameter is out of range. RESOURCE_EXHAUSTED: too many prompt tokens wait. UNAVAILABLE:
  /// draining, or the device failed. DEADLINE_EXCEEDED: it is over already.
  absl::Status Submit(QueueSlot slot, std::vector<std::vector<std::shared_ptr<Request>>> calls);
  /// Reserve() and Submit() of one.
  absl::Status Submit(std::shared_ptr<Request> request);

  /// Forgets all cached prefixes, before the next step. Running requests keep theirs.
  void ResetPrefixCache();

  /// Refuses new requests from now on; returns when all others have ended. Those still running at
  /// `deadline` end with UNAVAILABLE.
  void Drain(Clock::time_point deadline);

  EngineStats Stats() const;
  /// Seconds until all that waits now, and one more, have ended, at the rate of late; 0: not known.
  double SecondsToDrain() const;
  /// OK while the engine works; else why it cannot any more. Thread: any.
  absl::Status health() const;
  const ModelConfig& model_config() const { return model_; }
  /// Tokens that one sequence may have, prompt and output.
  int32_t max_model_len() const { return max_model_len_; }

 private:
  friend class QueueSlot;

  static constexpr Clock::duration kTenantsInterval = std::chrono::milliseconds(100);

  /// A step that is posted.
  struct Flight {
    Clock::time_point posted;
    int64_t num_tokens;
  };

  Engine(const EngineConfig& config, const ModelConfig& model, int32_t max_model_len,
         std::unique_ptr<Executor> executor);
  absl::Status CheckRequest(const Request& request) const;
  void GiveBack(int num_requests);

  // The engine thread.
  void Run();
  bool TakeInbox();
  bool PostStep();
  void TakeStep();

  // Under mutex_.
  bool IsIdle() const;
  int64_t NumQueued() const;
  void AbortAll(const absl::Status& why);
  void Publish();

  const EngineConfig config_;
  const ModelConfig model_;
  std::string device_;  // set before anybody has the engine
  const int32_t max_model_len_;

  // Of the engine thread alone.
  const std::unique_ptr<Executor> executor_;
  std::vector<BlockPool> block_pools_;  // by rank
  Scheduler scheduler_;
  std::deque<Flight> in_flight_;
  Clock::time_point last_step_end_;
  Clock::time_point tenants_published_;
  DrainRate drain_rate_;
  bool was_idle_ = true;  // when the snapshot was last brought up to date

  mutable std::mutex mutex_;          // guards what follows; never held during a step
  std::condition_variable work_;      // for the engine thread, while it is idle
  std::condition_variable all_done_;  // for Drain()
  std::vector<std::vector<std::shared_ptr<Request>>> inbox_;  // choices of a call
  int64_t num_inbox_requests_ = 0;
  int64_t num_inbox_tokens_ = 0;
  int64_t num_reserved_ = 0;
  bool reset_prefix_cache_ = false;
  EngineStats stats_;      // of the last step; what was taken from the inbox since then waits
  absl::Status health_;    // not OK: the device failed
  absl::Status refusal_;   // not OK: the answer to every new request
  absl::Status abort_;     // not OK: every request ends with it before the next step
  bool stopping_ = false;  // the engine thread is to end

  std::thread thread_;
};

}  // namespace shoal
