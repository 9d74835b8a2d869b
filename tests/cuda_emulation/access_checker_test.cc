// What the checker of accesses finds and what it lets pass, on any schedule. Kernels report their
// accesses by themselves here, so that they need not be compiled for it.
#include "tests/cuda_emulation/access_checker.h"

#include <gtest/gtest.h>

#include "kernels/cuda/ptx.cuh"
#include "tests/cuda_emulation/kernel_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::CommitCopies;
using shoal::cuda::CopyAsync16;
using shoal::cuda::SharedMemory;
using shoal::cuda::WaitForCopies;

template <typename T>
void Store(T* address, T value) {
  NoteAccess(Access::kWrite, address, sizeof(T));
  *address = value;
}

template <typename T>
T Load(const T* address) {
  NoteAccess(Access::kRead, address, sizeof(T));
  return *address;
}

/// What lies between two accesses to shared memory.
enum class Between { kNothing, kWarpBarrier, kShuffle, kBarrier };

void Pass(Between between) {
  if (between == Between::kWarpBarrier) __syncwarp();
  if (between == Between::kShuffle) __shfl_sync(kAllLanes, 1, 0);
  if (between == Between::kBarrier) __syncthreads();
}

struct Values {
  int4 vectors[64];
  int words[64];
  short halves[64];
};

/// Thread t writes, thread t ^ distance reads; or the other way round.
template <bool kReadFirst>
void Neighbours(unsigned int distance, Between between) {
  int* words = SharedMemory<Values>().words;
  if (kReadFirst) {
    Load(&words[threadIdx.x ^ distance]);
    Pass(between);
    Store(&words[threadIdx.x], 1);
  } else {
    Store(&words[threadIdx.x], 1);
    Pass(between);
    Load(&words[threadIdx.x ^ distance]);
  }
}

void RunNeighbours(bool read_first, unsigned int distance, Between between) {
  RunBlock(read_first ? Neighbours<true> : Neighbours<false>, 64, sizeof(Values), distance,
           between);
}

TEST(AccessChecker, OrderedAccessesPass) {
  for (const bool read_first : {false, true}) {
    for (int seed = 1; seed <= kSeeds; ++seed) {
      Seed(static_cast<uint64_t>(seed));
      RunNeighbours(read_first, 0, Between::kNothing);
      RunNeighbours(read_first, 5, Between::kWarpBarrier);
      RunNeighbours(read_first, 5, Between::kBarrier);
      RunNeighbours(read_first, 37, Between::kBarrier);
    }
  }
}

TEST(AccessCheckerDeathTest, RacesAreReported) {
  for (const auto& [distance, between] : {std::pair{5, Between::kNothing},
                                          {5, Between::kShuffle},
                                          {37, Between::kNothing},
                                          {37, Between::kWarpBarrier}}) {
    const auto apart = static_cast<unsigned int>(distance);
    EXPECT_DEATH(RunNeighbours(false, apart, between),
                 "race: (reads|writes) 4 bytes, shared memory \\+ 1..., with nothing to order it "
                 "after what was (written|read) by thread .* of this block; kernel .*Neighbours");
    EXPECT_DEATH(RunNeighbours(true, apart, between), "race: (reads|writes) 4 bytes");
  }
}

/// All threads read what one then writes.
void WriteWhatAllRead(bool barrier) {
  Values& values = SharedMemory<Values>();
  if (threadIdx.x == 0) Store(&values.words[0], 1);
  __syncthreads();
  Load(&values.words[0]);
  if (barrier) __syncthreads();
  if (threadIdx.x == 0) Store(&values.words[0], 2);
}

/// Neighbouring halves of a word.
void WriteHalves() { Store(&SharedMemory<Values>().halves[threadIdx.x], short{1}); }

TEST(AccessChecker, OneWritesWhatAllRead) {
  RunBlock(WriteWhatAllRead, 64, sizeof(Values), true);
  RunBlock(WriteHalves, 64, sizeof(Values));
}

TEST(AccessCheckerDeathTest, OneWritesWhatOthersStillRead) {
  EXPECT_DEATH(RunBlock(WriteWhatAllRead, 64, sizeof(Values), false), "race: ");
}

enum class CopyUse { kAfterBarrier, kBeforeBarrier, kBeforeWait, kCopiedAgain };

void UseCopy(CopyUse use, const int4* global) {
  int4* vectors = SharedMemory<Values>().vectors;
  const unsigned int thread = threadIdx.x;
  CopyAsync16(&vectors[thread], global, true);
  CommitCopies();
  if (use == CopyUse::kBeforeWait) Load(&vectors[thread]);
  WaitForCopies<0>();
  Load(&vectors[thread]);
  if (use != CopyUse::kBeforeBarrier) __syncthreads();
  Load(&vectors[thread ^ 1]);
  if (use == CopyUse::kCopiedAgain) {
    CopyAsync16(&vectors[thread], global, false);
    CommitCopies();
    WaitForCopies<0>();
  }
}

TEST(AccessChecker, CopiesMayBeUsedAfterABarrier) {
  const DeviceArray<int4> global(1);
  RunBlock(UseCopy, 64, sizeof(Values), CopyUse::kAfterBarrier, global.data());
}

TEST(AccessCheckerDeathTest, CopiesThatAreUsedTooSoonAreReported) {
  const DeviceArray<int4> global(1);
  const auto use = [&](CopyUse each) {
    RunBlock(UseCopy, 64, sizeof(Values), each, global.data());
  };
  EXPECT_DEATH(use(CopyUse::kBeforeWait), "after what is being copied to by thread");
  EXPECT_DEATH(use(CopyUse::kBeforeBarrier), "race: (reads|writes) 16 bytes");
  EXPECT_DEATH(use(CopyUse::kCopiedAgain), "race: (writes|reads) 16 bytes");
}

// Several blocks.

enum class Handover { kFences, kNoFenceBefore, kNoFenceAfter, kNoBarrier, kNone };

/// Each block writes its value; the one that counts last adds all up.
void AddBlocks(Handover handover, int* values, int* count, int* sum) {
  if (threadIdx.x == 32) Store(&values[blockIdx.x], static_cast<int>(blockIdx.x));
  if (handover != Handover::kNoFenceBefore && handover != Handover::kNone) __threadfence();
  if (handover != Handover::kNoBarrier) __syncthreads();
  if (threadIdx.x > 0) return;
  const int before = handover == Handover::kNone ? 2 : atomicAdd(count, 1);
  if (handover != Handover::kNoFenceAfter) __threadfence();
  if (before < static_cast<int>(gridDim.x) - 1) return;
  int total = 0;
  for (unsigned int i = 0; i < gridDim.x; ++i) total += Load(&values[i]);
  Store(sum, total);
}

void RunAddBlocks(Handover handover) {
  const DeviceArray<int> values(3), count(std::vector<int>{0}), sum(1);
  shoal::cuda::Launch(AddBlocks, {.blocks = 3, .threads = 64}, nullptr, handover, values.data(),
                      count.data(), sum.data());
  EXPECT_EQ(sum.Read(), std::vector<int>{3});
}

TEST(AccessChecker, LastBlockSeesTheOthers) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    RunAddBlocks(Handover::kFences);
  }
}

TEST(AccessCheckerDeathTest, BlocksThatDoNotWaitAreReported) {
  for (const Handover each :
       {Handover::kNoFenceBefore, Handover::kNoFenceAfter, Handover::kNoBarrier, Handover::kNone}) {
    EXPECT_REPORT(RunAddBlocks(each),
                  "race: .*of a device allocation of .* bytes, .* of (block number|this block)");
  }
}

void Count(int* count, bool read) {
  atomicAdd(count, 1);
  if (read) Load(count);
}

TEST(AccessCheckerDeathTest, AtomicOperationsAreInOrderOnlyWithEachOther) {
  const DeviceArray<int> count(std::vector<int>{0});
  const auto run = [&](bool read) {
    shoal::cuda::Launch(Count, {.blocks = 3, .threads = 40}, nullptr, count.data(), read);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  };
  run(false);
  EXPECT_EQ(count.Read(), std::vector<int>{120});
  EXPECT_DEATH(run(true), "race: .* 4 bytes, byte 0 of .* was (changed atomically|read) by thread");
}

void LoadAt(const int* values, int index) { Load(&values[index]); }

TEST(AccessCheckerDeathTest, ReadsBesideAnAllocationAreReported) {
  const DeviceArray<int> values(5);
  RunBlock(LoadAt, 1, 0, values.data(), 4);
  EXPECT_DEATH(RunBlock(LoadAt, 1, 0, values.data(), 5),
               "reads 4 bytes: 0 bytes past the end of a device allocation of 20 bytes");
  EXPECT_DEATH(RunBlock(LoadAt, 1, 0, values.data(), -1),
               "reads 4 bytes: 4 bytes before the start");
}

TEST(AccessChecker, CanBeTurnedOff) {
  CheckAccesses(false);
  RunNeighbours(false, 37, Between::kNothing);
  CheckAccesses(true);
}

}  // namespace
}  // namespace cuda_emulation
