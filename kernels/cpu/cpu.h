// Cpu: what every stage computes with.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/thread_pool.h"

namespace shoal {

/// Threads, their working memory, and the instruction set.
class Cpu {
 public:
  Cpu(ThreadPool* pool, Isa isa, UsedBytes* used) : pool(pool), isa(isa) {
    for (int i = 0; i < pool->num_threads(); ++i) workspaces_.emplace_back(used);
  }

  /// At least `count` floats for one thread, of any value, valid until it asks again.
  float* Workspace(int thread, int64_t count) { return workspaces_[thread].Reserve(count); }

  ThreadPool* const pool;
  const Isa isa;

 private:
  std::vector<Scratch<float>> workspaces_;
};

/// Loop iterations of `macs` multiply-adds each that are worth handing to another thread.
inline int64_t GrainFor(int64_t macs) {
  constexpr int64_t kWorthwhileMacs = 1 << 16;
  return std::max<int64_t>(1, kWorthwhileMacs / std::max<int64_t>(1, macs));
}

}  // namespace shoal
