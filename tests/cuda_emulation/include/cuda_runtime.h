// The part of CUDA C++ that the project's kernels use, carried out by the emulator. A kernel is a
// function that every thread of every block calls on a stack of its own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"
#include "tests/cuda_emulation/device.h"
#include "tests/cuda_emulation/launch.h"

// Kernels ask for loops to be unrolled as nvcc does it.
#pragma clang diagnostic ignored "-Wpass-failed"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
// Not emulated; but its constants are used.
#define __launch_bounds__(...) __attribute__((annotate("launch_bounds", __VA_ARGS__)))
#define __grid_constant__

// Of the kernel's thread that this thread of the host is just carrying out.
extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;
inline constexpr int warpSize = 32;

inline constexpr float2 make_float2(float x, float y) { return {x, y}; }
inline constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline constexpr int2 make_int2(int x, int y) { return {x, y}; }
inline constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline constexpr uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline constexpr uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
  return {x, y, z, w};
}

// Barriers, fences.
inline void __syncthreads() { cuda_emulation::BlockBarrier(); }
inline void __syncwarp(unsigned int mask = 0xffffffffu) { cuda_emulation::WarpBarrier(mask); }
inline void __threadfence() { cuda_emulation::ThreadFence(); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Exchange within a warp.
template <typename T>
T __shfl_sync(unsigned int mask, T value, int source_lane, int width = 32) {
  return cuda_emulation::Shuffle(cuda_emulation::Opcode::kShuffle, mask, value, source_lane, width);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32) {
  return cuda_emulation::Shuffle(cuda_emulation::Opcode::kShuffleXor, mask, value, lane_mask,
                                 width);
}
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  return cuda_emulation::Shuffle(cuda_emulation::Opcode::kShuffleDown, mask, value,
                                 static_cast<int>(delta), width);
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  return cuda_emulation::Shuffle(cuda_emulation::Opcode::kShuffleUp, mask, value,
                                 static_cast<int>(delta), width);
}
inline unsigned int __ballot_sync(unsigned int mask, int predicate) {
  return cuda_emulation::Vote(cuda_emulation::Opcode::kBallot, mask, predicate);
}
inline int __any_sync(unsigned int mask, int predicate) {
  return cuda_emulation::Vote(cuda_emulation::Opcode::kAny, mask, predicate) != 0;
}
inline int __all_sync(unsigned int mask, int predicate) {
  return cuda_emulation::Vote(cuda_emulation::Opcode::kAll, mask, predicate) == 0xffffffffu;
}

// Memory.
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  static_assert(std::is_integral_v<T>, "the order of a float's additions would be open");
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
  return expected;
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  cuda_emulation::NoteAtomic(address, sizeof(T));
  return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}

// Bits and numbers.
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline unsigned int __brev(unsigned int x) { return __builtin_bitreverse32(x); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<uint64_t>(a) * b) >> 32);
}
inline float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }

template <typename T>
  requires std::is_arithmetic_v<T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
  requires std::is_arithmetic_v<T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

namespace cuda_emulation {

/// A kernel with its arguments, converted to the kernel's parameters.
template <typename... Parameters>
class BoundKernel final : public KernelCall {
 public:
  template <typename... Arguments>
  explicit BoundKernel(void (*kernel)(Parameters...), Arguments&&... arguments)
      : kernel_(kernel), arguments_(std::forward<Arguments>(arguments)...) {
    static_assert((std::is_trivially_copyable_v<std::decay_t<Parameters>> && ...),
                  "arguments of kernels are plain data");
    const AddressCollector collector(&addresses_);
    std::apply([&](const auto&... each) { (collector.Collect(each), ...); }, arguments_);
  }

  void Run() const override { std::apply(kernel_, arguments_); }
  const void* function() const override { return reinterpret_cast<const void*>(kernel_); }
  std::span<const ArgumentAddress> addresses() const override { return addresses_; }

 private:
  void (*kernel_)(Parameters...);
  std::tuple<std::decay_t<Parameters>...> arguments_;
  std::vector<ArgumentAddress> addresses_;
};

}  // namespace cuda_emulation

template <typename... ExpTypes, typename... ActTypes>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(ExpTypes...),
                               ActTypes&&... args) {
  return cuda_emulation::EnqueueKernel(*config,
                                       std::make_shared<cuda_emulation::BoundKernel<ExpTypes...>>(
                                           kernel, std::forward<ActTypes>(args)...));
}

template <typename T>
cudaError_t cudaMalloc(T** devPtr, size_t size) {
  return ::cudaMalloc(reinterpret_cast<void**>(devPtr), size);
}
template <typename T>
cudaError_t cudaMallocHost(T** ptr, size_t size) {
  return ::cudaMallocHost(reinterpret_cast<void**>(ptr), size);
}
template <typename T>
cudaError_t cudaFuncSetAttribute(T* func, enum cudaFuncAttribute attr, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(func), attr, value);
}
template <typename T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attr, T* func) {
  return ::cudaFuncGetAttributes(attr, reinterpret_cast<const void*>(func));
}
template <typename T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* numBlocks, T func, int blockSize,
                                                          size_t dynamicSMemSize) {
  return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      numBlocks, reinterpret_cast<const void*>(func), blockSize, dynamicSMemSize);
}
