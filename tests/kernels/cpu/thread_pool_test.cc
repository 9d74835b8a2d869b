#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <numeric>

namespace shoal {
namespace {

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 100}) {
        std::vector<int> hits(count);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int thread) {
          ASSERT_TRUE(begin < end && thread >= 0 && thread < num_threads);
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), int64_t{0}), count);
        EXPECT_EQ(std::count(hits.begin(), hits.end(), 1), count);
      }
    }
  }
}

TEST(ThreadPool, ManyShortLoopsSeeTheirOwnData) {
  ThreadPool pool(3);
  for (int round = 0; round < 20000; ++round) {
    std::array<int, 6> values = {};
    pool.ParallelFor(6, 1, [&](int64_t begin, int64_t, int) { values[begin] = round; });
    for (int value : values) ASSERT_EQ(value, round);
  }
}

TEST(ThreadPool, WakesAfterSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    // The range [0, 1) waits for the other one, which only a second thread can run.
    std::atomic<bool> other = false;
    pool.ParallelFor(2, 1, [&](int64_t begin, int64_t, int) {
      if (begin == 1) other = true;
      while (!other) std::this_thread::yield();
    });
    EXPECT_TRUE(other);
  }
}

TEST(ThreadPool, IdleThreadsUseNoProcessorTime) {
  ThreadPool pool(4);
  pool.ParallelFor(100, 1, [](int64_t, int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto processor_ms = [] {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
  };
  const double before = processor_ms();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(processor_ms() - before, 100);  // three spinning threads would use 400 on two cores
}

TEST(ThreadPool, EndsWhileThreadsAreBusyStarting) {
  for (int round = 0; round < 50; ++round) ThreadPool pool(4);
}

}  // namespace
}  // namespace shoal
