// Kernels under the emulator: right ones pass whatever the schedule, and one that depends on it
// fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/bfloat16.h"
#include "kernels/cuda/ptx.cuh"
#include "tests/cuda_emulation/kernel_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::BFloat16;
using shoal::cuda::CommitCopies;
using shoal::cuda::CopyAsync16;
using shoal::cuda::Launch;
using shoal::cuda::LoadMatrices;
using shoal::cuda::LoadMatricesTransposed;
using shoal::cuda::MultiplyAdd;
using shoal::cuda::SharedMemory;
using shoal::cuda::WaitForCopies;

/// With nothing but the order of things to find a bug by.
class Schedules : public testing::Test {
 protected:
  Schedules() { CheckAccesses(false); }
  ~Schedules() override { CheckAccesses(true); }
};

// Where threads are, and who they are.

struct Place {
  uint3 thread;
  uint3 block;
};

void Places(Place* places) {
  const unsigned int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  places[block * blockDim.x * blockDim.y * blockDim.z + thread] = {threadIdx, blockIdx};
}

TEST(Kernels, ThreadsOfAllBlocksRun) {
  const dim3 grid(3, 2, 2), threads(5, 3, 2);
  const DeviceArray<Place> places(size_t{12} * 30);
  Launch(Places, {grid, threads}, nullptr, places.data());
  size_t i = 0;
  const std::vector<Place> read = places.Read();
  for (unsigned int bz = 0; bz < grid.z; ++bz) {
    for (unsigned int by = 0; by < grid.y; ++by) {
      for (unsigned int bx = 0; bx < grid.x; ++bx) {
        for (unsigned int t = 0; t < 30; ++t, ++i) {
          const auto& [thread, block] = read[i];
          EXPECT_EQ((std::vector{block.x, block.y, block.z}), (std::vector{bx, by, bz}));
          EXPECT_EQ((std::vector{thread.x, thread.y, thread.z}),
                    (std::vector{t % 5, t / 5 % 3, t / 15}));
        }
      }
    }
  }
}

// A sum over a block, with every kind of exchange.

struct SumShared {
  float values[256];
};

template <bool kBarrier>
void ReverseSum(float* out) {
  SumShared& shared = SharedMemory<SumShared>();
  const unsigned int thread = threadIdx.x;
  shared.values[thread] = static_cast<float>(thread);
  if (kBarrier) __syncthreads();
  float sum = shared.values[255 - thread];
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAllLanes, sum, i);
  __syncthreads();
  if (thread % 32 == 0) shared.values[thread / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < 8; ++i) sum += shared.values[i];
  out[thread] = sum;
}

bool ReverseSumIsRight(void (*kernel)(float*)) {
  const DeviceArray<float> out(256);
  RunBlock(kernel, 256, sizeof(SumShared), out.data());
  const std::vector<float> sums = out.Read();
  return std::ranges::all_of(sums, [](float sum) { return sum == 255 * 128; });
}

TEST(Kernels, BarriersOrderSharedMemory) {
  EXPECT_EQ(SeedsThatFail([] { return ReverseSumIsRight(ReverseSum<true>); }), 0);
}

TEST_F(Schedules, MissingBarrierShows) {
  EXPECT_EQ(SeedsThatFail([] { return ReverseSumIsRight(ReverseSum<false>); }), kSeeds);
}

struct Exchanged {
  int shuffled, in_eights, up, down, crossed;
  unsigned int ballot;
  int any, all;
  double wide;
};

void Exchange(Exchanged* out) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  out[threadIdx.x] = {.shuffled = __shfl_sync(kAllLanes, lane, 7),
                      .in_eights = __shfl_sync(kAllLanes, lane, 3, 8),
                      .up = __shfl_up_sync(kAllLanes, lane, 2),
                      .down = __shfl_down_sync(kAllLanes, lane, 3, 16),
                      .crossed = __shfl_xor_sync(kAllLanes, lane, 5),
                      .ballot = __ballot_sync(kAllLanes, lane % 3 == 0),
                      .any = __any_sync(kAllLanes, lane == 9),
                      .all = __all_sync(kAllLanes, lane < 31),
                      .wide = __shfl_sync(kAllLanes, lane * 0.5, 31)};
}

TEST(Kernels, LanesExchange) {
  const DeviceArray<Exchanged> out(64);
  const auto is_right = [&] {
    RunBlock(Exchange, 64, 0, out.data());
    const std::vector<Exchanged> all = out.Read();
    for (int thread = 0; thread < 64; ++thread) {
      const int lane = thread % 32;
      const Exchanged& each = all[static_cast<size_t>(thread)];
      EXPECT_EQ(each.shuffled, 7);
      EXPECT_EQ(each.in_eights, lane / 8 * 8 + 3);
      EXPECT_EQ(each.up, lane < 2 ? lane : lane - 2);
      EXPECT_EQ(each.down, lane % 16 + 3 < 16 ? lane + 3 : lane);
      EXPECT_EQ(each.crossed, lane ^ 5);
      EXPECT_EQ(each.ballot, 0b01001001001001001001001001001001u);
      EXPECT_EQ(each.any, 1);
      EXPECT_EQ(each.all, 0);
      EXPECT_EQ(each.wide, 15.5);
    }
    return true;
  };
  EXPECT_EQ(SeedsThatFail(is_right), 0);
}

void CountArrivals(int* count, int* last) {
  __threadfence();
  if (atomicAdd(count, 1) == static_cast<int>(gridDim.x * blockDim.x) - 1) *last += 1;
}

TEST(Kernels, LastArriverIsOne) {
  const DeviceArray<int> count(std::vector<int>{0}), last(std::vector<int>{0});
  Launch(CountArrivals, {.blocks = 7, .threads = 40}, nullptr, count.data(), last.data());
  EXPECT_EQ(count.Read(), std::vector<int>{280});
  EXPECT_EQ(last.Read(), std::vector<int>{1});
}

// Asynchronous copies: two stages, each thread brings 16 bytes of a row, and reads its neighbour's.

constexpr int kRows = 9;
constexpr int kCopyThreads = 64;

struct CopyShared {
  int4 stages[2][kCopyThreads];
};

enum class CopyBug { kNone, kWaitDepth, kNoBarrierAfterWait, kNoBarrierBeforePrefetch };

template <CopyBug kBug>
void SumRows(const int4* rows, int num_rows, int* out) {
  CopyShared& shared = SharedMemory<CopyShared>();
  const unsigned int thread = threadIdx.x;
  const auto prefetch = [&](int row) {
    CopyAsync16(&shared.stages[row % 2][thread], rows + row * kCopyThreads + thread,
                row < num_rows);
    CommitCopies();
  };
  prefetch(0);
  int sum = 0;
  for (int row = 0; row < kRows; ++row) {
    prefetch(row + 1);
    WaitForCopies<kBug == CopyBug::kWaitDepth ? 2 : 1>();
    if (kBug != CopyBug::kNoBarrierAfterWait) __syncthreads();
    const int4 value = shared.stages[row % 2][(thread + 33) % kCopyThreads];
    sum += value.x + value.y + value.z + value.w;
    if (kBug != CopyBug::kNoBarrierBeforePrefetch) __syncthreads();
  }
  WaitForCopies<0>();
  out[thread] = sum;
}

/// The rows beyond `num_rows` count as zeros.
bool SumRowsIsRight(void (*kernel)(const int4*, int, int*), int num_rows) {
  std::vector<int> values(static_cast<size_t>(num_rows) * kCopyThreads * 4);
  std::iota(values.begin(), values.end(), 1);
  const DeviceArray<int> rows(values), out(kCopyThreads);
  RunBlock(kernel, kCopyThreads, sizeof(CopyShared), reinterpret_cast<const int4*>(rows.data()),
           num_rows, out.data());
  const std::vector<int> sums = out.Read();
  for (size_t thread = 0; thread < kCopyThreads; ++thread) {
    int expected = 0;
    for (size_t row = 0; row < static_cast<size_t>(num_rows); ++row) {
      const auto first =
          values.begin() +
          static_cast<std::ptrdiff_t>((row * kCopyThreads + (thread + 33) % kCopyThreads) * 4);
      expected += std::accumulate(first, first + 4, 0);
    }
    if (sums[thread] != expected) return false;
  }
  return true;
}

TEST(Kernels, CopiesAreThereOnceWaitedFor) {
  for (const int rows : {kRows, kRows - 2}) {
    EXPECT_EQ(SeedsThatFail([&] { return SumRowsIsRight(SumRows<CopyBug::kNone>, rows); }), 0);
  }
}

TEST_F(Schedules, WrongOrderOfCopiesShows) {
  const auto seeds = [](void (*kernel)(const int4*, int, int*)) {
    return SeedsThatFail([&] { return SumRowsIsRight(kernel, kRows); });
  };
  EXPECT_GE(seeds(SumRows<CopyBug::kWaitDepth>), kSeeds / 3);
  EXPECT_GE(seeds(SumRows<CopyBug::kNoBarrierAfterWait>), kSeeds / 3);
  EXPECT_GE(seeds(SumRows<CopyBug::kNoBarrierBeforePrefetch>), kSeeds / 3);
}

// Matrices.

struct MatrixShared {
  BFloat16 a[16][16];
  BFloat16 b[16][16];  // row k, column n
};

/// out [16, 16] = 1 + a b, of [16, 16] each.
void Multiply(const BFloat16* a, const BFloat16* b, float* out) {
  MatrixShared& shared = SharedMemory<MatrixShared>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) {
    shared.a[i / 16][i % 16] = a[i];
    shared.b[i / 16][i % 16] = b[i];
  }
  __syncwarp();
  uint32_t a_tile[4], b_tile[4];
  LoadMatrices(&shared.a[lane % 16][lane / 16 * 8], a_tile);
  LoadMatricesTransposed(&shared.b[lane % 16][lane / 16 * 8], b_tile);
  for (int half = 0; half < 2; ++half) {
    float c[4] = {1, 1, 1, 1};
    MultiplyAdd(c, a_tile, b_tile[2 * half], b_tile[2 * half + 1]);
    for (int i = 0; i < 4; ++i) {
      out[(lane / 4 + 8 * (i / 2)) * 16 + 8 * half + 2 * (lane % 4) + i % 2] = c[i];
    }
  }
}

TEST(Kernels, TensorCoresMultiply) {
  std::vector<BFloat16> a, b;
  for (int i = 0; i < 256; ++i) {
    a.emplace_back(static_cast<float>(i % 23 - 11) * 0.37f);
    b.emplace_back(static_cast<float>(i % 19 - 9) * 0.53f);
  }
  const DeviceArray<BFloat16> device_a(a), device_b(b);
  const DeviceArray<float> out(256);
  ResetCounters();
  RunBlock(Multiply, 32, sizeof(MatrixShared), device_a.data(), device_b.data(), out.data());
  const std::vector<float> product = out.Read();
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 16; ++column) {
      float expected = 1;
      for (size_t k = 0; k < 16; ++k) {
        expected += static_cast<float>(a[row * 16 + k]) * static_cast<float>(b[k * 16 + column]);
      }
      EXPECT_EQ(product[row * 16 + column], expected);
    }
  }
  const Counters counters = ReadCounters();
  EXPECT_EQ(counters.launches, 1u);
  EXPECT_EQ(counters.blocks, 1u);
  // Rows of 32 bytes: each matrix has two rows in the same banks.
  EXPECT_EQ(counters.bank_conflicts, 8u);
}

struct SwizzleShared {
  BFloat16 tile[32][64];
};

template <bool kSwizzled>
void LoadRows(uint32_t* out) {
  SwizzleShared& shared = SharedMemory<SwizzleShared>();
  const unsigned int lane = threadIdx.x;
  const unsigned int group = kSwizzled ? lane % 8 : 0;
  uint32_t tile[4];
  LoadMatrices(&shared.tile[lane][8 * group], tile);
  out[lane] = tile[0];
}

TEST(Kernels, BankConflictsAreCounted) {
  const DeviceArray<uint32_t> out(32);
  ResetCounters();
  RunBlock(LoadRows<true>, 32, sizeof(SwizzleShared), out.data());
  EXPECT_EQ(ReadCounters().bank_conflicts, 0u);
  EXPECT_EQ(out.Read()[5], 0xffffffffu) << "shared memory begins as no number";
  RunBlock(LoadRows<false>, 32, sizeof(SwizzleShared), out.data());
  EXPECT_EQ(ReadCounters().bank_conflicts, 28u);
}

}  // namespace
}  // namespace cuda_emulation
