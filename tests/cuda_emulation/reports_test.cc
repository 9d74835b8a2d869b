// Wrong kernels under the emulator: each kind is reported.
#include <gtest/gtest.h>

#include <utility>

#include "kernels/cuda/ptx.cuh"
#include "tests/cuda_emulation/kernel_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::CommitCopies;
using shoal::cuda::CopyAsync16;
using shoal::cuda::LoadMatrices;
using shoal::cuda::SharedMemory;

void HalfAtBarrier() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) __syncwarp();
  if (threadIdx.x >= 32) __syncthreads();
  if (threadIdx.x == 40) __syncthreads();
}

void SomeLanesAtBarrier() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

void SomeExit() {
  if (threadIdx.x < 3) return;
  __syncthreads();
}

void SomeLanesExit() {
  if (threadIdx.x % 2 == 0) return;
  __syncwarp();
}

void Diverges() {
  if (threadIdx.x < 16) {
    __ballot_sync(kAllLanes, 1);
  } else {
    __shfl_sync(kAllLanes, 1, 0);
  }
}

void Votes() { __ballot_sync(kAllLanes, 1); }

void PartOfWarp() { __shfl_sync(0xffff, 1, 0); }

TEST(ReportsDeathTest, WaitsThatCannotEndAreReported) {
  EXPECT_REPORT(RunBlock(HalfAtBarrier, 64, 0), "kernel .*HalfAtBarrier, block \\(0, 0, 0\\)");
  EXPECT_REPORT(RunBlock(SomeLanesAtBarrier, 32, 0),
                "deadlock in block \\(0, 0, 0\\): threads 0-15 in __syncthreads, 16-31 in "
                "__syncwarp; kernel .*SomeLanesAtBarrier");
}

TEST(ReportsDeathTest, ThreadsThatEndTooSoonAreReported) {
  EXPECT_REPORT(RunBlock(SomeExit, 64, 0),
                "the thread ends while others wait in __syncthreads|__syncthreads after . threads");
  EXPECT_REPORT(RunBlock(SomeLanesExit, 32, 0),
                "ends while lanes of its warp wait in __syncwarp|deadlock");
}

TEST(ReportsDeathTest, DivergenceIsReported) {
  EXPECT_REPORT(RunBlock(Diverges, 32, 0),
                "divergence: the thread is at __(ballot|shfl)_sync, other lanes of its warp are "
                "at __(shfl|ballot)_sync.*kernel .*Diverges, .*thread");
  EXPECT_REPORT(RunBlock(PartOfWarp, 32, 0), "__shfl_sync with mask 0x0000ffff");
  EXPECT_REPORT(RunBlock(Votes, 40, 0), "__ballot_sync in a warp that has not 32 threads");
}

enum class MemoryBug {
  kMisalignedShared,
  kMisalignedGlobal,
  kOutsideShared,
  kOutsideGlobal,
  kNotWaitedFor,
  kMisalignedMatrix,
  kMatrixOutside,
  kLayoutTooLarge,
  kWriteAfterShared,
  kWriteFarAfterShared,
  kWriteBeforeShared,
  kWriteAfterGlobal,
  kWriteFarAfterGlobal,
  kWriteBeforeGlobal,
  kReadFarAfterGlobal,
};

struct LargeShared {
  int4 values[128];
};

struct SmallShared {
  int4 values[32];
  unsigned char last;
};

/// `global`: 33 int.
void BreakMemory(MemoryBug bug, int* global) {
  SmallShared& shared = SharedMemory<SmallShared>();
  auto* bytes = reinterpret_cast<unsigned char*>(&shared);
  const unsigned int lane = threadIdx.x;
  uint32_t tile[4];
  switch (bug) {
    case MemoryBug::kMisalignedShared:
      return CopyAsync16(bytes + 8, global, true);
    case MemoryBug::kMisalignedGlobal:
      return CopyAsync16(bytes, global + 1, true);
    case MemoryBug::kOutsideShared:
      return CopyAsync16(bytes + 33 * 16, global, true);
    case MemoryBug::kOutsideGlobal:
      return CopyAsync16(bytes, global + 32, true);
    case MemoryBug::kNotWaitedFor:
      CopyAsync16(&shared.values[lane], global, lane % 2 == 0);
      return CommitCopies();
    case MemoryBug::kMisalignedMatrix:
      return LoadMatrices(bytes + 16 * lane + 2, tile);
    case MemoryBug::kMatrixOutside:
      return LoadMatrices(bytes + 16 * (lane + 2), tile);
    case MemoryBug::kLayoutTooLarge:
      SharedMemory<LargeShared>().values[0].x = 1;
      return;
    case MemoryBug::kWriteAfterShared:
      bytes[sizeof(SmallShared)] = 1;
      return;
    case MemoryBug::kWriteFarAfterShared:
      bytes[sizeof(SmallShared) + 4096] = 1;
      return;
    case MemoryBug::kWriteBeforeShared:
      bytes[-1] = 1;
      return;
    case MemoryBug::kWriteAfterGlobal:
      global[33] = 1;
      return;
    case MemoryBug::kWriteFarAfterGlobal:
      global[33 + 1024] = 1;
      return;
    case MemoryBug::kWriteBeforeGlobal:
      global[-1] = 1;
      return;
    case MemoryBug::kReadFarAfterGlobal:
      global[0] = global[33 + 1024];
      return;
  }
}

TEST(ReportsDeathTest, WrongAccessesAreReported) {
  const DeviceArray<int> global(33);
  const auto run = [&](MemoryBug bug) {
    RunBlock(BreakMemory, 32, sizeof(SmallShared), bug, global.data());
  };
  const std::pair<MemoryBug, const char*> cases[] = {
      {MemoryBug::kMisalignedShared, "cp.async .* not aligned to 16 bytes; kernel .*BreakMemory"},
      {MemoryBug::kMisalignedGlobal, "cp.async .* not aligned to 16 bytes"},
      {MemoryBug::kOutsideShared, "cp.async to shared memory \\+ 528, which has 528 bytes"},
      {MemoryBug::kOutsideGlobal,
       "cp.async from .*, 16 bytes: byte 128 of a device allocation of 132"},
      {MemoryBug::kNotWaitedFor, "1 asynchronous copies were never waited for"},
      {MemoryBug::kMisalignedMatrix, "ldmatrix.* not aligned to 16 bytes"},
      {MemoryBug::kMatrixOutside, "ldmatrix.* from shared memory \\+ 528"},
      {MemoryBug::kLayoutTooLarge,
       "the kernel uses 2048 bytes of shared memory, the launch gave 528"},
      {MemoryBug::kWriteAfterShared, "write 0 bytes past the end of the dynamic shared memory"},
      {MemoryBug::kWriteFarAfterShared, "beside the 528 bytes of dynamic shared memory"},
      {MemoryBug::kWriteBeforeShared, "write before the start of the dynamic shared memory"},
      {MemoryBug::kWriteAfterGlobal, "written 0 bytes past the end of an allocation of 132 bytes"},
      {MemoryBug::kWriteFarAfterGlobal, "4096 bytes past the end of a device allocation of 132"},
      {MemoryBug::kWriteBeforeGlobal, "written before the start of an allocation of 132 bytes"},
      {MemoryBug::kReadFarAfterGlobal, "4096 bytes past the end .*kernel .*BreakMemory, block"},
  };
  for (const auto& [bug, report] : cases) {
    SCOPED_TRACE(static_cast<int>(bug));
    EXPECT_REPORT(run(bug), report);
  }
}

__attribute__((noinline)) int Recurse(int depth, volatile int* sink) {
  volatile char frame[512];
  frame[0] = static_cast<char>(depth);
  *sink = depth;
  return depth == 0 ? 0 : Recurse(depth - 1, sink) + frame[0];
}

void Overflow(int* out) { *out = Recurse(1 << 20, out); }

TEST(ReportsDeathTest, StackOverflowIsReported) {
  const DeviceArray<int> out(1);
  EXPECT_REPORT(RunBlock(Overflow, 1, 0, out.data()), "stack overflow");
}

}  // namespace
}  // namespace cuda_emulation
