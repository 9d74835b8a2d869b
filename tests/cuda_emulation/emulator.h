// What tests of kernels and of their host code ask of the emulated devices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

/// Everything that a device leaves open - the order of blocks and warps, when a copy lands, when a
/// stream's work is done - depends on the seed, and is the same each time for calls of one thread.
void Seed(uint64_t seed);
uint64_t Seed();

/// Whether each access of a kernel is checked (see access_checker.h), if it was compiled for that.
/// At first it is.
void CheckAccesses(bool check);

/// What was seen since ResetCounters(), on all devices.
struct Counters {
  uint64_t launches = 0;        // of kernels that were carried out
  uint64_t blocks = 0;          // of them
  uint64_t bank_conflicts = 0;  // wavefronts of ldmatrix beyond one for each 8x8 matrix
};
Counters ReadCounters();
void ResetCounters();

/// The machine pretends to have so many devices with so much memory each. At first: one, of
/// kDefaultMemoryBytes. Ends all trouble below. There must be no streams, and no device memory.
inline constexpr size_t kDefaultMemoryBytes = size_t{4} << 30;
void SetDevices(int count, size_t memory_bytes = kDefaultMemoryBytes);

/// 13000 at first; below that the runtime finds no device, and 0 means that there is no driver.
void SetDriverVersion(int version);

/// The next launch of a kernel on the device is refused with `error`; nothing is enqueued.
void RefuseNextLaunch(int device, cudaError_t error);

/// The next kernel that the device begins fails with `error` before it has done anything. As on a
/// device, everything on it fails so from then on, until Recover().
void FailNextKernel(int device, cudaError_t error);

/// The device does nothing any more until Recover(). A call that would wait for it is a violation,
/// for on a device it would never return.
void Hang(int device);

void Recover(int device);

}  // namespace cuda_emulation
