#include "kernels/cpu/thread_pool.h"

#include "kernels/status.h"

namespace shoal {
namespace {

// How often a thread looks for work before it sleeps: some 50 microseconds, longer than the gap
// between two ops of a step, shorter than what an idle server would notice.
constexpr int kSpins = 1000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// Delegates, so that the destructor ends those threads that did start.
ThreadPool::ThreadPool(int num_threads) : ThreadPool() {
  SHOAL_CHECK(num_threads >= 1 && num_threads <= kMaxThreads, "{} threads", num_threads);
  threads_.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { Work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  state_.fetch_add(kLoopIncrement);
  state_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::RunLoop(const Loop& loop) {
  loop_ = loop;
  next_.store(0, std::memory_order_relaxed);
  const uint32_t idle = state_.load(std::memory_order_relaxed);
  state_.store((idle + kLoopIncrement) | kOpen, std::memory_order_seq_cst);
  state_.notify_all();
  RunRanges(0);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; state_.load(std::memory_order_acquire) & kWorkersMask; ++spins) {
    if (spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::RunRanges(int thread) {
  const Loop loop = loop_;
  for (;;) {
    const int64_t begin = next_.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.count) return;
    loop.call(loop.context, begin, std::min(begin + loop.grain, loop.count), thread);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t state = 0;
  for (;;) {
    state = WaitForLoop(state);
    if (stopping_.load()) return;
    const uint32_t number = state / kLoopIncrement;
    while ((state & kOpen) && state / kLoopIncrement == number) {
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
        RunRanges(thread);
        state_.fetch_sub(1, std::memory_order_release);
        break;
      }
    }
    state = number * kLoopIncrement;
  }
}

/// Returns the state once its loop is another than that of `last_state`.
uint32_t ThreadPool::WaitForLoop(uint32_t last_state) const {
  const uint32_t last = last_state / kLoopIncrement;
  for (int spins = 0;; ++spins) {
    const uint32_t state = state_.load(std::memory_order_acquire);
    if (state / kLoopIncrement != last) return state;
    if (spins < kSpins) {
      Pause();
    } else {
      state_.wait(state);
    }
  }
}

}  // namespace shoal
