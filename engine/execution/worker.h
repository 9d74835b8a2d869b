// Worker: the thread of one rank. It alone touches the rank's backend, weights and KV cache.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/execution/executor.h"
#include "engine/execution/mailbox.h"
#include "engine/execution/model_runner.h"
#include "engine/model/weights.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/status.h"

namespace shoal {

/// What the workers of a group must know to start.
struct WorkerConfig {
  std::string model_directory;
  int num_ranks = 1;
  int num_redundant_experts = 0;  // experts that have a second place on another rank
  int num_threads = 0;  // compute threads of all ranks together, at least one each; 0: one
                        // per core we may use
  ModelRunnerConfig runner = {};
};

/// What a worker has for itself.
struct WorkerShare {
  std::unique_ptr<Communicator> communicator = nullptr;  // null: the group of one
  CpuBackendOptions backend = {};                        // its part of the machine
};

/// Runs batches one after the other. Thread: all methods belong to the engine thread.
class Worker {
 public:
  /// Starts the thread, which loads the weights and allocates the KV cache; returns at once.
  /// `progress` is called from it meanwhile. RESOURCE_EXHAUSTED if the system refuses a thread.
  static absl::StatusOr<std::unique_ptr<Worker>> Launch(const WorkerConfig& config,
                                                        const ExpertPlacement& placement,
                                                        WorkerShare share, LoadProgress progress);
  /// Waits for the batches in flight, then ends the thread. The other ranks must be running, or
  /// have no batch in flight.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Waits until the worker is ready. Returns the blocks of its KV cache, or why it cannot start:
  /// then it is of no use. Called once, before all that follows.
  absl::StatusOr<int32_t> WaitUntilReady() { return ready_.get(); }

  /// Hands over the next batch; returns at once. At most Executor::kMaxInFlight are in flight.
  void Post(ScheduledBatch batch);

  /// Waits for the result of the oldest batch in flight: one row per logits row. Not OK: the device
  /// failed.
  absl::StatusOr<std::vector<SampledRow>> Take();

 private:
  static constexpr uint32_t kMaxInFlight = Executor::kMaxInFlight;

  Worker() = default;
  void Serve(ModelRunner& runner);

  uint32_t num_in_flight_ = 0;
  Mailbox<std::optional<ScheduledBatch>, 2 * kMaxInFlight> batches_;  // nothing: the end
  Mailbox<absl::StatusOr<std::vector<SampledRow>>, kMaxInFlight> results_;
  std::future<absl::StatusOr<int32_t>> ready_;
  std::thread thread_;
};

}  // namespace shoal
