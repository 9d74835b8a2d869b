// Worker: the thread of one rank. It alone touches the rank's backend, weights and KV cache.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "engine/execution/mailbox.h"
#include "engine/execution/model_runner.h"
#include "engine/model/weights.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/status.h"

namespace shoal {

/// What a worker must know to start.
struct WorkerConfig {
  std::string model_directory;
  int num_threads = 0;  // compute threads; 0: one per core we may use
  ModelRunnerConfig runner = {};
};

/// Runs batches one after the other. Thread: all methods belong to the engine thread.
class Worker {
 public:
  /// Starts the thread, loads the weights and allocates the KV cache. Blocks until the worker is
  /// ready; `progress` is called from the worker's thread meanwhile.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const WorkerConfig& config,
                                                       LoadProgress progress);
  /// Waits for the batches in flight, then ends the thread.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Blocks of the KV cache.
  int32_t num_kv_blocks() const { return num_kv_blocks_; }

  /// Hands over the next batch; returns at once. At most two batches are in flight.
  void Post(ScheduledBatch batch);

  /// Waits for the result of the oldest batch in flight.
  StepResult Take();

 private:
  static constexpr uint32_t kMaxInFlight = 2;

  Worker() = default;
  void Serve(ModelRunner& runner);

  int32_t num_kv_blocks_ = 0;
  uint32_t num_in_flight_ = 0;
  Mailbox<std::optional<ScheduledBatch>, 2 * kMaxInFlight> batches_;  // nothing: the end
  Mailbox<StepResult, kMaxInFlight> results_;
  std::thread thread_;
};

}  // namespace shoal
