// Worker: the thread of one rank. It alone touches the rank's backend, weights and KV cache.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/status.h"

namespace shoal {

/// What a worker must know to start.
struct WorkerConfig {
  std::string model_directory;
  ModelConfig model;
  DType dtype = DType::kBFloat16;     // of weights, activations and KV cache
  int num_threads = 0;                // compute threads; 0: one per core we may use
  int64_t max_model_len = 0;          // tokens of one sequence
  int64_t max_num_batched_tokens = 0; // tokens of one step
  int64_t vocab_limit = 0;            // token ids below this can be generated; 0: vocab_size
  int32_t block_size = 16;            // tokens per KV block
  int64_t kv_cache_memory_bytes = 0;  // 0: as much as is useful and free
};

/// Runs batches one after the other. Thread: all methods belong to the engine thread.
class Worker {
 public:
  /// Starts the thread, loads the weights and allocates the KV cache. Blocks until the worker is ready;
  /// `progress` is called from the worker's thread meanwhile.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const WorkerConfig& config,
                                                       LoadProgress progress);
  /// Waits for the batch in flight, then ends the thread.
  virtual ~Worker() = default;

  /// Blocks of the KV cache.
  virtual int32_t num_kv_blocks() const = 0;

  /// Hands over the next batch; returns at once. At most two batches are in flight.
  virtual void Post(ScheduledBatch batch) = 0;

  /// Waits for the result of the oldest batch in flight.
  virtual StepResult Take() = 0;
};

}  // namespace shoal
