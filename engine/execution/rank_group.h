// RankGroup: the ranks of one process, each with a worker.
#pragma once

#include <memory>
#include <vector>

#include "engine/execution/executor.h"
#include "engine/execution/worker.h"

namespace shoal {

/// Attention is data-parallel: each rank holds its own sequences and their KV cache. Experts are
/// shared out by the placement of the config. Thread: engine.
class RankGroup final : public Executor {
 public:
  /// Starts a worker per rank and loads the weights; blocks until all are ready. `progress` counts
  /// the bytes of all ranks together; it is called from one thread at a time.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Start(const WorkerConfig& config,
                                                          LoadProgress progress);
  /// Waits for the steps in flight, then ends the threads.
  ~RankGroup() override;

  std::span<const int32_t> num_kv_blocks() const override { return num_kv_blocks_; }
  std::span<const MemoryPlan> memory_plans() const override { return memory_plans_; }
  void Post(ScheduledStep step) override;
  StepResult Take() override;

 private:
  RankGroup() = default;

  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<int32_t> num_kv_blocks_;
  std::vector<MemoryPlan> memory_plans_;
};

}  // namespace shoal
