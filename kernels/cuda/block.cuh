// What the threads of a block find out together about 64-bit integers. Blocks are whole warps, of
// any number up to 32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace shoal::cuda {

inline constexpr unsigned int kAllLanes = 0xffffffff;
inline constexpr int kWarpSize = 32;
inline constexpr int kMaxWarps = 32;

__device__ __forceinline__ int ThreadIndex() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int NumThreads() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int WarpIndex() { return static_cast<int>(threadIdx.x / kWarpSize); }
__device__ __forceinline__ int NumWarps() { return NumThreads() / kWarpSize; }
__device__ __forceinline__ int LaneIndex() { return static_cast<int>(threadIdx.x % kWarpSize); }

/// Shared memory of the functions below: a value of each warp.
struct WarpValues {
  uint64_t of[kMaxWarps];
};

/// The sum of `value` over the lanes up to this one.
__device__ __forceinline__ uint64_t WarpRunningSum(uint64_t value) {
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, value, distance);
    if (LaneIndex() >= distance) value += below;
  }
  return value;
}

__device__ __forceinline__ uint64_t WarpMin(uint64_t value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = min(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

__device__ __forceinline__ uint64_t WarpSum(uint64_t value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// The least `value` of all threads.
__device__ __forceinline__ uint64_t BlockMin(uint64_t value, WarpValues& shared) {
  value = WarpMin(value);
  __syncthreads();  // nobody still reads what was there
  if (LaneIndex() == 0) shared.of[WarpIndex()] = value;
  __syncthreads();
  return WarpMin(shared.of[min(LaneIndex(), NumWarps() - 1)]);
}

/// The sum of `value` over the threads before this one, and over all.
__device__ __forceinline__ uint64_t BlockSumBefore(uint64_t value, WarpValues& shared,
                                                   uint64_t& total) {
  const uint64_t running = WarpRunningSum(value);
  __syncthreads();  // nobody still reads what was there
  if (LaneIndex() == kWarpSize - 1) shared.of[WarpIndex()] = running;
  __syncthreads();
  const uint64_t of_warp = LaneIndex() < NumWarps() ? shared.of[LaneIndex()] : 0;
  const uint64_t warps = WarpRunningSum(of_warp);
  total = __shfl_sync(kAllLanes, warps, kWarpSize - 1);
  const uint64_t before = __shfl_sync(kAllLanes, warps - of_warp, WarpIndex());
  return before + running - value;
}

/// The sum of `value` over all threads.
__device__ __forceinline__ uint64_t BlockSum(uint64_t value, WarpValues& shared) {
  uint64_t total;
  BlockSumBefore(value, shared, total);
  return total;
}

}  // namespace shoal::cuda
