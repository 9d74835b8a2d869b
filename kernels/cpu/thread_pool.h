// ThreadPool: runs a loop on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace shoal {

/// Threads that wait for loops to share. An idle pool uses no processor time. One loop at a time;
/// ParallelFor is called by one thread, and not from inside a loop.
class ThreadPool {
 public:
  /// `num_threads` in [1, kMaxThreads], the caller's included: 1 starts none. Throws
  /// std::system_error if the system refuses a thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 1024;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls body(begin, end, thread) for ranges of at most `grain` that cover [0, count) once, and
  /// returns when all are done. `thread` in [0, num_threads()) is different for calls that run at
  /// the same time; 0 is the caller. What a loop computes must not depend on which thread runs a
  /// range.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) {
    if (count <= grain || threads_.empty()) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    const auto call = [](const void* context, int64_t begin, int64_t end, int thread) {
      (*static_cast<const Body*>(context))(begin, end, thread);
    };
    RunLoop({.call = call, .context = &body, .count = count, .grain = grain});
  }

 private:
  struct Loop {
    void (*call)(const void* context, int64_t begin, int64_t end, int thread) = nullptr;
    const void* context = nullptr;
    int64_t count = 0;
    int64_t grain = 1;
  };

  ThreadPool() = default;
  void RunLoop(const Loop& loop);
  void RunRanges(int thread);
  void Work(int thread);
  uint32_t WaitForLoop(uint32_t last_state) const;

  // state_: the loop's number, whether it may still be joined, and how many workers are in it. A
  // worker reads loop_ only between joining and leaving, and loop_ is written only while nobody is
  // in: so a worker that wakes late neither delays the caller nor sees the wrong loop.
  static constexpr uint32_t kWorkersMask = 0xfff;
  static constexpr uint32_t kOpen = 0x1000;
  static constexpr uint32_t kLoopIncrement = 0x2000;

  std::atomic<uint32_t> state_ = 0;
  std::atomic<bool> stopping_ = false;
  Loop loop_;
  alignas(64) std::atomic<int64_t> next_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace shoal
