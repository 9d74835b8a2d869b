// What a kernel's thread asks of the emulator: barriers, collectives of its warp, shared
// memory, asynchronous copies.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cuda_emulation {

/// What all lanes of a warp do together.
enum class Opcode : uint8_t {
  kBarrier,
  kShuffle,
  kShuffleXor,
  kShuffleDown,
  kShuffleUp,
  kBallot,
  kAny,
  kAll,
  kLoadMatrices,
  kLoadMatricesTransposed,
  kMultiplyAdd,
  kCount,
};

/// __syncthreads().
void BlockBarrier();

/// __syncwarp().
void WarpBarrier(uint32_t mask);

/// The bits of `value` of the lane that `opcode` and `lane_argument` name.
uint64_t ShuffleBits(Opcode opcode, uint32_t mask, uint64_t value, int lane_argument, int width);

template <typename T>
T Shuffle(Opcode opcode, uint32_t mask, T value, int lane_argument, int width) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(static_cast<Bits>(
      ShuffleBits(opcode, mask, std::bit_cast<Bits>(value), lane_argument, width)));
}

/// The lanes whose predicate is not 0, as a bit mask, to all lanes.
uint32_t Vote(Opcode opcode, uint32_t mask, int predicate);

/// __threadfence().
void ThreadFence();

/// The thread is about to change an address in one step.
void NoteAtomic(const void* address, size_t size);

/// The block's dynamic shared memory; the launch must have given `size` bytes.
void* DynamicSharedMemory(size_t size, size_t alignment);

/// The offset of an address in the block's dynamic shared memory.
uint32_t SharedOffset(const void* shared);

// The instructions of kernels/cuda/ptx.cuh that need more than one thread's registers.
void CopyAsync16(void* shared, const void* global, bool valid);
void CommitCopies();
void WaitForCopies(int pending);
void LoadMatrices(Opcode opcode, const void* row, uint32_t (&out)[4]);
void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace cuda_emulation
