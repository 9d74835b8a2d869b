// Executor: where the engine's steps run.
#pragma once

#include <cstdint>
#include <span>

#include "engine/execution/memory_plan.h"
#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Runs steps one after the other, on all ranks at once. Thread: all methods belong to the engine
/// thread.
class Executor {
 public:
  static constexpr int kMaxInFlight = 2;

  virtual ~Executor() = default;

  /// Blocks of the KV cache of each rank.
  virtual std::span<const int32_t> num_kv_blocks() const = 0;

  /// What the memory of each rank's device is for; empty where nobody knows.
  virtual std::span<const MemoryPlan> memory_plans() const { return {}; }

  /// Hands over the next step; returns at once. At most kMaxInFlight are in flight.
  virtual void Post(ScheduledStep step) = 0;

  /// Waits for the result of the oldest step in flight.
  virtual StepResult Take() = 0;
};

}  // namespace shoal
