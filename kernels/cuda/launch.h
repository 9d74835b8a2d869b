// Launching kernels.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace shoal::cuda {

/// Where a kernel runs: blocks, threads of each, bytes of dynamic shared memory of each.
struct Grid {
  dim3 blocks = {};
  dim3 threads = {};
  size_t shared_bytes = 0;
};

/// Enqueues a kernel; a grid without blocks enqueues nothing. What goes wrong shows in
/// cudaGetLastError.
template <typename... Parameters, typename... Arguments>
void Launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
            Arguments&&... arguments) {
  constexpr size_t kAlwaysAllowed = 48 << 10;
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  if (grid.shared_bytes > kAlwaysAllowed) {
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                         cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(grid.shared_bytes));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace shoal::cuda
