// The instructions of the kernels that CUDA C++ has no word for, each in a function of its own.
// This is the only file with inline assembly (PTX ISA 9.0; section numbers are its own).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"

namespace shoal::cuda {

extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];

/// The block's dynamic shared memory, whose size the launch gave, as a T. Kernels have no other
/// shared memory. Aligned to 128 bytes, not initialised. Leaves its size in the PTX, as a comment.
template <typename T>
__device__ __forceinline__ T& SharedMemory() {
  asm volatile("// shared memory: %0 bytes" ::"n"(sizeof(T)));
  return *reinterpret_cast<T*>(dynamic_shared_memory);
}

/// The address of shared memory as instructions want it.
__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/// Starts an asynchronous copy of 16 bytes from global to shared memory, both aligned to 16 bytes;
/// if not `valid`, of zeros, and `global` is not read. Section 9.7.9.25.3 (cp.async).
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(valid ? 16 : 0)
      : "memory");
}

/// Makes one group of this thread's copies that are in no group yet, maybe of none.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most kPending of this thread's groups are not done. Other threads see the data
/// after a barrier.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Loads four 8x8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i,
/// aligned to 16 bytes; the lane gets elements (2 (lane % 4), + 1) of row lane / 4 of each. All 32
/// lanes. Section 9.7.14.5.15 (ldmatrix).
__device__ __forceinline__ void LoadMatrices(const void* row, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(row))
               : "memory");
}

/// The same, each matrix transposed: the lane gets elements lane / 4 of rows 2 (lane % 4), + 1.
__device__ __forceinline__ void LoadMatricesTransposed(const void* row, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(row))
               : "memory");
}

/// c += a b, bfloat16 into float32: a [16, 16] row-major, b [16, 8] column-major, c [16, 8]. With
/// g = lane / 4 and t = lane % 4: a[i] holds row g + 8 (i % 2), columns 2 t + 8 (i / 2), + 1; b[i]
/// rows 2 t + 8 i, + 1 of column g; c[i] row g + 8 (i / 2), column 2 t + i % 2. All 32 lanes.
/// Section 9.7.14.5.8 (mma.m16n8k16).
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats rounded to bfloat16 (to nearest, ties to even), `low` in the lower half.
__device__ __forceinline__ uint32_t PackBFloat16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x, approximately (2 ulp); 0 for -infinity.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace shoal::cuda
