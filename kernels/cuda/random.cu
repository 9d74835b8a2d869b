// FillNormal: writes each element once, 2 or 4 bytes, and reads nothing. Philox takes about 100
// integer instructions for two elements, so it is these that bound it, at about 1 TB/s.
#include "kernels/cuda/random.h"

#include "kernels/bfloat16.h"
#include "kernels/cuda/launch.h"
#include "kernels/normal.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kElementsPerThread = 8;  // one store of 16 bytes in bfloat16

template <typename T>
struct FillNormalKernelArgs {
  T* out;
  int64_t num_elements;
  uint64_t seed;
  float factor;
};

/// One thread: kElementsPerThread elements in a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) FillNormalKernel(FillNormalKernelArgs<T> args) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first = thread * kElementsPerThread;
  if (first >= args.num_elements) return;
  struct alignas(16) Elements {
    T values[kElementsPerThread];
  } elements;
#pragma unroll
  for (int i = 0; i < kElementsPerThread; i += 2) {
    const std::array<int32_t, 2> sums = ByteSumPair(args.seed, (first + i) / 2);
    elements.values[i] = T(static_cast<float>(sums[0]) * args.factor);
    elements.values[i + 1] = T(static_cast<float>(sums[1]) * args.factor);
  }
  if (first + kElementsPerThread <= args.num_elements) {
    *reinterpret_cast<Elements*>(args.out + first) = elements;
    return;
  }
#pragma unroll
  for (int i = 0; i < kElementsPerThread; ++i) {
    if (first + i < args.num_elements) args.out[first + i] = elements.values[i];
  }
}

template <typename T>
void Fill(const FillNormalArgs& args, cudaStream_t stream) {
  constexpr int64_t kElementsPerBlock = kThreads * kElementsPerThread;
  const int64_t blocks = (args.num_elements + kElementsPerBlock - 1) / kElementsPerBlock;
  FillNormalKernelArgs<T> kernel_args;
  kernel_args.out = static_cast<T*>(args.out);
  kernel_args.num_elements = args.num_elements;
  kernel_args.seed = args.seed;
  kernel_args.factor = args.stddev / kByteSumDeviation;
  const Grid grid = {dim3(static_cast<unsigned int>(blocks)), dim3(kThreads)};
  Launch(FillNormalKernel<T>, grid, stream, kernel_args);
}

}  // namespace

void FillNormal(const FillNormalArgs& args, cudaStream_t stream) {
  if (args.float_out) {
    Fill<float>(args, stream);
  } else {
    Fill<BFloat16>(args, stream);
  }
}

}  // namespace shoal::cuda
