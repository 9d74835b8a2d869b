// Worker: the thread of one rank. It alone touches the rank's backend, weights and KV cache.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/execution/executor.h"
#include "engine/execution/mailbox.h"
#include "engine/execution/model_runner.h"
#include "engine/model/weights.h"
#include "engine/scheduler/scheduled_batch.h"
#include "kernels/backend.h"
#include "kernels/status.h"

namespace shoal {

/// What the workers of a group must know to start.
struct WorkerConfig {
  std::string model_directory;
  bool has_weights = true;  // false: random ones, made on the device
  int num_ranks = 1;
  int num_redundant_experts = 0;  // experts that have a second place on another rank
  // Makes what a rank computes with, on the rank's thread; may be called by several at once. The
  // communicator is null for the group of one.
  std::function<absl::StatusOr<Backend>(int rank, std::unique_ptr<Communicator> communicator)>
      make_backend;
  // Is told what a rank's memory will be for, before its weights are loaded; called as above.
  std::function<void(int rank, const MemoryPlan& plan)> on_memory_plan = nullptr;
  ModelRunnerConfig runner = {};
};

/// Runs batches one after the other. Thread: all methods belong to the engine thread.
class Worker {
 public:
  /// Starts the thread, which loads the weights and allocates the KV cache; returns at once.
  /// Without a communicator it is rank 0, alone. `progress` is called from it meanwhile.
  /// RESOURCE_EXHAUSTED if the system refuses a thread.
  static absl::StatusOr<std::unique_ptr<Worker>> Launch(const WorkerConfig& config,
                                                        const ExpertPlacement& placement,
                                                        std::unique_ptr<Communicator> communicator,
                                                        LoadProgress progress);
  /// Waits for the batches in flight, then ends the thread. The other ranks must be running, or
  /// have no batch in flight.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Waits until the worker is ready. Returns what the memory of its device is for, or why it
  /// cannot start: then it is of no use. Called once, before all that follows.
  absl::StatusOr<MemoryPlan> WaitUntilReady() { return ready_.get(); }

  /// Hands over the next batch; returns at once. At most Executor::kMaxInFlight are in flight.
  void Post(ScheduledBatch batch);

  /// Asks for the result of the oldest batch in flight, once; returns at once. What is posted
  /// before is on the device before the worker waits for it.
  void Ask();

  /// Waits for the result that was asked for: one row per logits row. Not OK: the device failed.
  absl::StatusOr<std::vector<SampledRow>> Take();

 private:
  static constexpr uint32_t kMaxInFlight = Executor::kMaxInFlight;

  /// What the engine thread wants of the worker's.
  struct Order {
    enum class Kind { kEnd, kRun, kCollect };

    Kind kind = Kind::kEnd;
    ScheduledBatch batch = {};  // to run
  };

  Worker() = default;
  void Serve(ModelRunner& runner);

  uint32_t num_in_flight_ = 0;
  bool asked_ = false;
  // The worker has taken what was ordered up to the batch whose result was taken last: a question
  // about each of the batches before and after may be left, these batches, and the end.
  Mailbox<Order, 4 * kMaxInFlight> orders_;
  Mailbox<absl::StatusOr<std::vector<SampledRow>>, kMaxInFlight> results_;
  std::future<absl::StatusOr<MemoryPlan>> ready_;
  std::thread thread_;
};

}  // namespace shoal
