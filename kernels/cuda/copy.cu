#include "kernels/cuda/copy.h"

#include <algorithm>

#include "kernels/cuda/launch.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kVectorBytes = sizeof(uint4);
constexpr int64_t kVectorElements = kVectorBytes / sizeof(BFloat16);

/// Block x of the grid copies row x.
__global__ void __launch_bounds__(kThreads) GatherKernel(GatherArgs args) {
  const int64_t row = blockIdx.x;
  const int32_t id = args.row_ids[row];
  const auto* from = reinterpret_cast<const uint4*>(args.table + max(id, 0) * args.row_size);
  auto* to = reinterpret_cast<uint4*>(args.out + row * args.row_size);
  const int64_t num_vectors = args.row_size / kVectorElements;
  for (int64_t i = threadIdx.x; i < num_vectors; i += kThreads) {
    to[i] = id < 0 ? uint4{} : __ldg(from + i);
  }
}

__global__ void __launch_bounds__(kThreads)
    MapIdsKernel(const int32_t* ids, const int32_t* table, int32_t* out, int64_t num_ids) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= num_ids) return;
  const int32_t id = ids[i];
  out[i] = id < 0 ? id : table[id];
}

/// Blocks (x, y) of the grid, for all y, share copy x.
__global__ void __launch_bounds__(kThreads)
    CopyBlocksKernel(unsigned char* kv, const BlockCopy* copies, int64_t block_bytes) {
  const BlockCopy copy = copies[blockIdx.x];
  const auto* from = reinterpret_cast<const uint4*>(kv + copy.source * block_bytes);
  auto* to = reinterpret_cast<uint4*>(kv + copy.target * block_bytes);
  const int64_t num_vectors = block_bytes / kVectorBytes;
  const int64_t stride = int64_t{gridDim.y} * kThreads;
  for (int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x; i < num_vectors; i += stride) {
    to[i] = from[i];
  }
}

__global__ void __launch_bounds__(kThreads) ResolveTokensKernel(ResolveArgs args) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= args.num_tokens || args.slots[t] < 0) return;
  int32_t* entry = args.history + args.slots[t] * args.max_model_len + args.positions[t];
  const int32_t token = args.token_ids[t];
  if (token >= 0) {
    *entry = token;
  } else {
    args.token_ids[t] = max(*entry, 0);
  }
}

unsigned int BlocksFor(int64_t num_threads) {
  return static_cast<unsigned int>((num_threads + kThreads - 1) / kThreads);
}

}  // namespace

void GatherRows(const GatherArgs& args, cudaStream_t stream) {
  Launch(GatherKernel, {.blocks = static_cast<unsigned int>(args.num_rows), .threads = kThreads},
         stream, args);
}

void MapIds(const int32_t* ids, const int32_t* table, int32_t* out, int64_t num_ids,
            cudaStream_t stream) {
  Launch(MapIdsKernel, {.blocks = BlocksFor(num_ids), .threads = kThreads}, stream, ids, table, out,
         num_ids);
}

void CopyBlocks(void* kv, const BlockCopy* copies, int64_t num_copies, int64_t block_bytes,
                cudaStream_t stream) {
  // Two accesses for each thread: a copy that is alone should still be spread over the device.
  constexpr int64_t kAccesses = 2, kMostBlocks = 1024;
  const int64_t blocks = block_bytes / kVectorBytes / (kAccesses * kThreads);
  const auto blocks_of_copy =
      static_cast<unsigned int>(std::clamp(blocks, int64_t{1}, kMostBlocks));
  Launch(CopyBlocksKernel,
         {.blocks = {static_cast<unsigned int>(num_copies), blocks_of_copy}, .threads = kThreads},
         stream, static_cast<unsigned char*>(kv), copies, block_bytes);
}

void ResolveTokens(const ResolveArgs& args, cudaStream_t stream) {
  Launch(ResolveTokensKernel, {.blocks = BlocksFor(args.num_tokens), .threads = kThreads}, stream,
         args);
}

}  // namespace shoal::cuda
