// What the parity suite of the communicators leaves out: waiting, and ranks that disagree.
#include "kernels/comm/local_group.h"

#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/comm/single_rank.h"

namespace shoal {
namespace {

/// Runs body(communicator) on a thread per rank.
void RunRanks(int size, const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  for (std::unique_ptr<Communicator>& rank : MakeLocalGroup(size)) {
    threads.emplace_back([&body, rank = std::move(rank)] { body(*rank); });
  }
  for (std::thread& thread : threads) thread.join();
}

Tensor Floats(std::vector<float>& memory, std::initializer_list<int64_t> shape) {
  Tensor tensor(nullptr, DType::kFloat32, shape);
  memory.resize(tensor.num_elements());
  tensor.data = memory.data();
  return tensor;
}

double ThreadProcessorMs() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

TEST(LocalGroup, WaitingRanksUseNoProcessorTime) {
  const std::vector<int64_t> counts = {1, 0, 0, 0};
  RunRanks(4, [&](Communicator& rank) {
    if (rank.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const double before = ThreadProcessorMs();
    std::vector<float> local, all;
    rank.AllGather(Floats(local, {counts[rank.rank()], 1}), counts, Floats(all, {1, 1}));
    EXPECT_LT(ThreadProcessorMs() - before, 20);  // three spinning ranks on two cores: 133 each
  });
}

TEST(LocalGroup, ARankThatIsDoneMayGoAway) {
  const std::vector<int64_t> counts = {1, 1};
  for (int round = 0; round < 100; ++round) {
    RunRanks(2, [&](Communicator& rank) {
      std::vector<float> local = {static_cast<float>(round + rank.rank())}, all;
      rank.AllGather(Floats(local, {1, 1}), counts, Floats(all, {2, 1}));
      EXPECT_EQ(all,
                (std::vector<float>{static_cast<float>(round), static_cast<float>(round + 1)}));
    });
  }
}

TEST(LocalGroupDeathTest, RanksThatDisagreeEndTheProcess) {
  const auto gather = [](Communicator& rank, std::vector<int64_t> counts, int64_t columns) {
    std::vector<float> local, all;
    int64_t total = 0;
    for (int64_t count : counts) total += count;
    rank.AllGather(Floats(local, {counts[rank.rank()], columns}), counts,
                   Floats(all, {total, columns}));
  };
  EXPECT_DEATH(RunRanks(2, [&](Communicator& rank) { gather(rank, {1, 1 + rank.rank()}, 1); }),
               "AllGather with counts 1, ");
  EXPECT_DEATH(RunRanks(2, [&](Communicator& rank) { gather(rank, {1, 1}, 1 + rank.rank()); }),
               "shapes of their rows differ");
  EXPECT_DEATH(RunRanks(2,
                        [&](Communicator& rank) {
                          if (rank.rank() == 0) return gather(rank, {1, 1}, 1);
                          std::vector<float> rows, out;
                          int32_t expert = 0;
                          const std::vector<int64_t> counts = {1, 1};
                          rank.ReturnRows(Floats(rows, {2, 1, 1}),
                                          Tensor(&expert, DType::kInt32, {1, 1}), 1, counts,
                                          Floats(out, {1, 1, 1}));
                        }),
               "in ReturnRows");
}

TEST(LocalGroupDeathTest, ShapesThatAreNotOfTheCountsEndTheProcess) {
  SingleRank rank;
  std::vector<float> two, three;
  const std::vector<int64_t> counts = {2}, negative = {-1}, too_many = {2, 0};
  const Tensor local = Floats(two, {2, 1}), all = Floats(three, {3, 1});
  EXPECT_DEATH(rank.AllGather(local, counts, all), "all has 2 dimensions and 3 rows");
  EXPECT_DEATH(rank.AllGather(local, too_many, local), "2 counts for 1 ranks");
  EXPECT_DEATH(rank.AllGather(local, negative, local), "counts are -1");
}

TEST(LocalGroupDeathTest, ExpertsOfNoRankEndTheProcess) {
  const std::vector<int64_t> counts = {1};
  for (int32_t expert : {-1, 4}) {
    EXPECT_DEATH(RunRanks(1,
                          [&](Communicator& rank) {
                            std::vector<float> rows, out;
                            int32_t id = expert;
                            rank.ReturnRows(Floats(rows, {1, 1, 1}),
                                            Tensor(&id, DType::kInt32, {1, 1}), 4, counts,
                                            Floats(out, {1, 1, 1}));
                          }),
                 "of 1 ranks with 4 each");
  }
}

}  // namespace
}  // namespace shoal
