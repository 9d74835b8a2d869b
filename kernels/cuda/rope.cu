#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeArgs {
  AttentionArgs attention = {};
  const float* table = nullptr;
  int blocks_per_token = 0;
};

/// Eight elements of storage, in order.
struct Elements {
  float values[8];

  static __device__ __forceinline__ Elements Load(const BFloat16* from) {
    const uint4 packed = *reinterpret_cast<const uint4*>(from);
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
    Elements elements;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      elements.values[2 * i] = __uint_as_float(pairs[i] << 16);
      elements.values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
    return elements;
  }

  __device__ __forceinline__ uint4 Packed() const {
    return make_uint4(PackBFloat16(values[0], values[1]), PackBFloat16(values[2], values[3]),
                      PackBFloat16(values[4], values[5]), PackBFloat16(values[6], values[7]));
  }
};

__device__ __forceinline__ void Store(const uint4& packed, BFloat16* to) {
  *reinterpret_cast<uint4*>(to) = packed;
}

/// Where row `head` of the slot lies in the cache: first the kv heads' keys, then their values.
__device__ __forceinline__ BFloat16* CacheRow(const AttentionArgs& args, int slot, int head) {
  const int64_t block = slot / args.block_size;
  const int64_t row = (block * 2 * args.num_kv_heads + head) * args.block_size;
  return args.kv + (row + slot % args.block_size) * args.head_dim;
}

/// Eight pairs (i, i + head_dim / 2) of one query or key.
__device__ __forceinline__ void Rotate(const RopeArgs& args, int64_t token, int slot, int item) {
  const AttentionArgs& attention = args.attention;
  const int half = attention.head_dim / 2;
  const int head = item / (half / 8), column = item % (half / 8) * 8;
  const int num_rows = attention.num_heads + 2 * attention.num_kv_heads;
  BFloat16* row = attention.qkv + (token * num_rows + head) * attention.head_dim + column;
  const int64_t angles = static_cast<int64_t>(attention.positions[token]) * half + column;
  const auto* table = reinterpret_cast<const float4*>(args.table + 2 * angles);
  Elements low = Elements::Load(row), high = Elements::Load(row + half);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 angle = __ldg(table + i);
    const float cosines[2] = {angle.x, angle.z}, sines[2] = {angle.y, angle.w};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float& a = low.values[2 * i + j];
      float& b = high.values[2 * i + j];
      const float rotated = a * cosines[j] - b * sines[j];
      b = b * cosines[j] + a * sines[j];
      a = rotated;
    }
  }
  const uint4 packed_low = low.Packed(), packed_high = high.Packed();
  Store(packed_low, row);
  Store(packed_high, row + half);
  if (head < attention.num_heads) return;
  BFloat16* key = CacheRow(attention, slot, head - attention.num_heads) + column;
  Store(packed_low, key);
  Store(packed_high, key + half);
}

/// Eight elements of a value.
__device__ __forceinline__ void CopyValue(const AttentionArgs& args, int64_t token, int slot,
                                          int item) {
  const int head = item / (args.head_dim / 8), column = item % (args.head_dim / 8) * 8;
  const int first = args.num_heads + args.num_kv_heads;
  const BFloat16* row =
      args.qkv + (token * (first + args.num_kv_heads) + first + head) * args.head_dim + column;
  Store(*reinterpret_cast<const uint4*>(row),
        CacheRow(args, slot, args.num_kv_heads + head) + column);
}

__global__ void __launch_bounds__(kThreads) RotateAndWrite(const RopeArgs args) {
  const AttentionArgs& attention = args.attention;
  const int64_t token = blockIdx.x / args.blocks_per_token;
  const int item = blockIdx.x % args.blocks_per_token * kThreads + threadIdx.x;
  const int slot = attention.slot_mapping[token];
  if (slot < 0) return;
  const int num_rotations =
      (attention.num_heads + attention.num_kv_heads) * (attention.head_dim / 16);
  const int num_values = attention.num_kv_heads * (attention.head_dim / 8);
  if (item < num_rotations) {
    Rotate(args, token, slot, item);
  } else if (item < num_rotations + num_values) {
    CopyValue(attention, token, slot, item - num_rotations);
  }
}

}  // namespace

void RopeAndWriteKv(const AttentionArgs& args, const float* rope_table, cudaStream_t stream) {
  const int items_per_token = (args.num_heads + 3 * args.num_kv_heads) * (args.head_dim / 16);
  const int blocks_per_token = (items_per_token + kThreads - 1) / kThreads;
  const RopeArgs work = {
      .attention = args, .table = rope_table, .blocks_per_token = blocks_per_token};
  const auto num_blocks = static_cast<unsigned>(args.num_tokens * blocks_per_token);
  Launch(RotateAndWrite, {num_blocks, kThreads, 0}, stream, work);
}

}  // namespace shoal::cuda
