// EngineStats: one snapshot of the engine, for metrics, logs and pages.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kvcache/block_pool.h"
#include "engine/request/sequence.h"
#include "engine/scheduler/scheduler.h"

namespace shoal {

/// Counts of what falls into ranges.
struct Histogram {
  /// `count` ranges whose upper bounds are first, first * factor, first * factor^2, ... and one
  /// more without a bound.
  static Histogram Exponential(double first, double factor, int count);

  void Add(double value);

  std::vector<double> bounds;   // rising; a value that equals one is below it
  std::vector<int64_t> counts;  // [bounds.size() + 1]
  double sum = 0;
};

/// A snapshot of the engine after a step. Counters count since the start.
struct EngineStats {
  SchedulerStats scheduler;
  int64_t num_reserved = 0;            // queue slots whose requests are still to come
  std::vector<BlockPoolStats> blocks;  // by rank
  std::vector<Tenant> tenants;         // not older than 100 ms
  int64_t num_steps = 0;
  // From the post of a step, or the end of the one before if that is later, to its end.
  Histogram step_seconds = Histogram::Exponential(1e-5, 2, 22);
  Histogram step_tokens = Histogram::Exponential(1, 2, 17);
  double requests_per_second = 0;  // that end, of late: how fast the queue drains; 0: idle, or not
                                   // known yet

  /// Of all ranks together.
  BlockPoolStats AllBlocks() const;
};

/// How many requests end per second while any run, mostly of the last few seconds.
class DrainRate {
 public:
  /// There is work again: the time until `now` was nobody's.
  void Resume(Clock::time_point now) { last_ = now; }

  /// `num_ended`: requests that have ended by `now`, ever. Returns the rate; 0: not known yet.
  double Update(Clock::time_point now, int64_t num_ended);

 private:
  static constexpr double kSeconds = 5;  // in which what was counts for less by a factor of e

  Clock::time_point last_ = {};
  int64_t num_ended_ = 0;
  double recent_ended_ = 0;
  double recent_seconds_ = 0;
};

}  // namespace shoal
