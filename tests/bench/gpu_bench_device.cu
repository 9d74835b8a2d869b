#include "kernels/cuda/launch.h"
#include "tests/bench/gpu_bench_device.h"

namespace shoal::bench {
namespace {

/// Eight loads of 16 bytes are on their way in each thread.
__global__ void __launch_bounds__(kReadThreads) ReadKernel(ReadArgs args) {
  constexpr int kLoads = 8;
  const auto* data = static_cast<const uint4*>(args.data);
  const int64_t count = args.bytes / static_cast<int64_t>(sizeof(uint4));
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kReadThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kReadThreads + threadIdx.x;
  uint32_t sum = 0;
  for (int64_t i = thread; i < count; i += kLoads * threads) {
    uint4 values[kLoads];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int64_t at = i + load * threads;
      values[load] = at < count ? __ldg(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      sum ^= values[load].x ^ values[load].y ^ values[load].z ^ values[load].w;
    }
  }
  args.sums[thread] = sum;
}

__global__ void IncrementKernel(int32_t* counter) { *counter += 1; }

}  // namespace

void ReadMemory(const ReadArgs& args, cudaStream_t stream) {
  cuda::Launch(
      ReadKernel,
      {.blocks = dim3(static_cast<unsigned>(args.num_blocks)), .threads = dim3(kReadThreads)},
      stream, args);
}

void Increment(int32_t* counter, cudaStream_t stream) {
  cuda::Launch(IncrementKernel, {.blocks = dim3(1), .threads = dim3(1)}, stream, counter);
}

}  // namespace shoal::bench
