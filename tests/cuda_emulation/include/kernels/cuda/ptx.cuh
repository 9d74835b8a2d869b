// The functions of the real kernels/cuda/ptx.cuh, carried out by the emulator: what they do is
// documented there.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>

#include "kernels/bfloat16.h"

namespace shoal::cuda {

template <typename T>
__device__ __forceinline__ T& SharedMemory() {
  return *static_cast<T*>(cuda_emulation::DynamicSharedMemory(sizeof(T), alignof(T)));
}

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return cuda_emulation::SharedOffset(shared);
}

__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
  cuda_emulation::CopyAsync16(shared, global, valid);
}

__device__ __forceinline__ void CommitCopies() { cuda_emulation::CommitCopies(); }

template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  cuda_emulation::WaitForCopies(kPending);
}

__device__ __forceinline__ void LoadMatrices(const void* row, uint32_t (&out)[4]) {
  cuda_emulation::LoadMatrices(cuda_emulation::Opcode::kLoadMatrices, row, out);
}

__device__ __forceinline__ void LoadMatricesTransposed(const void* row, uint32_t (&out)[4]) {
  cuda_emulation::LoadMatrices(cuda_emulation::Opcode::kLoadMatricesTransposed, row, out);
}

__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  cuda_emulation::MultiplyAdd(c, a, b0, b1);
}

__device__ __forceinline__ uint32_t PackBFloat16(float low, float high) {
  return BFloat16(low).bits | static_cast<uint32_t>(BFloat16(high).bits) << 16;
}

__device__ __forceinline__ float Exp2(float x) { return exp2f(x); }

}  // namespace shoal::cuda
