// The runtime's functions about devices, kernels and memory.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/cuda_emulation/emulator.h"
#include "tests/cuda_emulation/launch.h"
#include "tests/cuda_emulation/memory.h"
#include "tests/cuda_emulation/runtime.h"

namespace cuda_emulation {
namespace {

// An H200, but for its memory.
constexpr int kNumMultiprocessors = 132;
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kBlocksPerMultiprocessor = 32;
constexpr int kRegisters = 65536;
constexpr int kMaxThreads = 1024;
constexpr int kSharedBytes = 48 << 10;  // without asking
constexpr int kMaxSharedBytes = static_cast<int>(SharedMemory::kMaxBytes);
constexpr int kSharedBytesPerMultiprocessor = 228 << 10;
constexpr int kReservedSharedBytes = 1 << 10;
constexpr int kMaxGridX = 0x7fffffff;
constexpr int kMaxGridYz = 65535;
constexpr int kL2Bytes = 50 << 20;
constexpr int kMemoryBusBits = 6144;
constexpr int kVersion = 13000;

std::atomic<int> driver_version = kVersion;

cudaError_t CheckShape(const cudaLaunchConfig_t& config) {
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || threads < 1 || threads > kMaxThreads ||
      block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64 || grid.x > kMaxGridX ||
      grid.y > kMaxGridYz || grid.z > kMaxGridYz) {
    return cudaErrorInvalidConfiguration;
  }
  return config.numAttrs == 0 ? cudaSuccess : cudaErrorNotSupported;
}

int SharedLimitLocked(const Runtime& runtime, const void* function) {
  const auto found = runtime.shared_memory_limits.find(function);
  return found == runtime.shared_memory_limits.end() ? kSharedBytes : found->second;
}

/// 0 for an attribute that is not emulated.
int AttributeOf(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
      return kMaxThreads;
    case cudaDevAttrMaxGridDimX:
      return kMaxGridX;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return kMaxGridYz;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return kSharedBytes;
    case cudaDevAttrWarpSize:
      return kWarpSize;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return kRegisters;
    case cudaDevAttrMultiProcessorCount:
      return kNumMultiprocessors;
    case cudaDevAttrGlobalMemoryBusWidth:
      return kMemoryBusBits;
    case cudaDevAttrL2CacheSize:
      return kL2Bytes;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return kThreadsPerMultiprocessor;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return kSharedBytesPerMultiprocessor;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return kMaxSharedBytes;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return kBlocksPerMultiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return kReservedSharedBytes;
  }
  return 0;
}

/// Pinned memory and memory of the current device.
cudaError_t Allocate(MemoryKind kind, void** pointer, size_t size) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  if (const cudaError_t error = runtime.CheckUnsafeCallLocked(); error != cudaSuccess) return error;
  if (pointer == nullptr) return Result(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (size == 0) return cudaSuccess;
  Memory& memory = Memory::Get();
  if (kind == MemoryKind::kDevice) {
    const size_t left = runtime.memory_bytes() - memory.UsedBytes(current_device);
    if (size > left || Memory::TakenBytes(size) > left) return Result(cudaErrorMemoryAllocation);
  }
  *pointer = memory.Allocate(kind, current_device, size);
  return Result(*pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

/// Waits for everything first, as the device does. Frees even if the device has failed.
cudaError_t Free(MemoryKind kind, void* pointer, const char* call) {
  if (pointer == nullptr) return cudaSuccess;
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  if (const cudaError_t error = runtime.CheckUnsafeCallLocked(); error != cudaSuccess) return error;
  Memory& memory = Memory::Get();
  const std::optional<Allocation> allocation = memory.Find(pointer, 0);
  if (!allocation || allocation->begin != pointer || allocation->kind != kind) {
    return Result(cudaErrorInvalidValue);
  }
  cudaError_t result = cudaSuccess;
  for (int i = 0; i < runtime.num_devices(); ++i) {
    if (kind == MemoryKind::kDevice && i != allocation->device) continue;
    Device& device = *runtime.FindDeviceLocked(i);
    if (!device.hung) runtime.CheckUnusedLocked(pointer, allocation->size, call);
    const cudaError_t error = runtime.WaitForDeviceLocked(lock, device, call);
    if (error != cudaSuccess) result = error;
  }
  memory.Free(kind, pointer);
  return Result(result);
}

}  // namespace

void SetDriverVersion(int version) { driver_version = version; }

cudaError_t EnqueueKernel(const cudaLaunchConfig_t& config,
                          std::shared_ptr<const KernelCall> call) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  const auto stream = runtime.FindStreamLocked(config.stream);
  if (stream == nullptr || stream->device != current_device) {
    return Result(cudaErrorInvalidResourceHandle);
  }
  if (const cudaError_t error = CheckShape(config); error != cudaSuccess) return Result(error);
  const int shared_limit = SharedLimitLocked(runtime, call->function());
  if (config.dynamicSmemBytes > static_cast<size_t>(shared_limit)) {
    return Result(cudaErrorInvalidValue);
  }
  if (device->refuse_launch != cudaSuccess) {
    return Result(std::exchange(device->refuse_launch, cudaSuccess));
  }
  const LaunchShape shape = {config.gridDim, config.blockDim, config.dynamicSmemBytes};
  return runtime.EnqueueLocked(lock, stream, {KernelWork{std::move(call), shape}});
}

extern "C" {

cudaError_t cudaDriverGetVersion(int* driverVersion) {
  *driverVersion = driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* runtimeVersion) {
  *runtimeVersion = kVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (driver_version < kVersion) {
    return Result(cudaErrorInsufficientDriver);
  }
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  *count = runtime.num_devices();
  return Result(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const Device* found = runtime.FindDeviceLocked(device);
  if (found == nullptr) return Result(cudaErrorInvalidDevice);
  current_device = device;
  return Result(found->fault);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  if (runtime.FindDeviceLocked(device) == nullptr) return Result(cudaErrorInvalidDevice);
  *prop = {};
  prop->totalGlobalMem = runtime.memory_bytes();
  prop->sharedMemPerBlock = kSharedBytes;
  prop->regsPerBlock = kRegisters;
  prop->warpSize = kWarpSize;
  prop->maxThreadsPerBlock = kMaxThreads;
  prop->maxThreadsDim[0] = kMaxThreads;
  prop->maxThreadsDim[1] = kMaxThreads;
  prop->maxThreadsDim[2] = 64;
  prop->maxGridSize[0] = kMaxGridX;
  prop->maxGridSize[1] = kMaxGridYz;
  prop->maxGridSize[2] = kMaxGridYz;
  prop->major = 9;
  prop->minor = 0;
  prop->multiProcessorCount = kNumMultiprocessors;
  prop->concurrentKernels = 1;
  prop->ECCEnabled = 1;
  prop->pciBusID = device + 1;
  prop->asyncEngineCount = 3;
  prop->unifiedAddressing = 1;
  prop->memoryBusWidth = kMemoryBusBits;
  prop->l2CacheSize = kL2Bytes;
  prop->maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
  prop->sharedMemPerMultiprocessor = kSharedBytesPerMultiprocessor;
  prop->regsPerMultiprocessor = kRegisters;
  prop->sharedMemPerBlockOptin = kMaxSharedBytes;
  prop->maxBlocksPerMultiProcessor = kBlocksPerMultiprocessor;
  prop->reservedSharedMemPerBlock = kReservedSharedBytes;
  std::snprintf(prop->name, sizeof(prop->name), "Emulated device %d", device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attr, int device) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  if (runtime.FindDeviceLocked(device) == nullptr) return Result(cudaErrorInvalidDevice);
  *value = AttributeOf(attr);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* pciBusId, int len, int device) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  if (runtime.FindDeviceLocked(device) == nullptr) return Result(cudaErrorInvalidDevice);
  std::snprintf(pciBusId, static_cast<size_t>(len), "0000:%02X:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  Device* device = nullptr;
  if (const cudaError_t error = runtime.CurrentDeviceLocked(&device); error != cudaSuccess) {
    return error;
  }
  *total = runtime.memory_bytes();
  *free = *total - Memory::Get().UsedBytes(current_device);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** devPtr, size_t size) {
  return Allocate(MemoryKind::kDevice, devPtr, size);
}

cudaError_t cudaFree(void* devPtr) { return Free(MemoryKind::kDevice, devPtr, "cudaFree"); }

cudaError_t cudaMallocHost(void** ptr, size_t size) {
  return Allocate(MemoryKind::kPinned, ptr, size);
}

cudaError_t cudaHostAlloc(void** pHost, size_t size, unsigned int flags) {
  return Allocate(MemoryKind::kPinned, pHost, size);
}

cudaError_t cudaFreeHost(void* ptr) { return Free(MemoryKind::kPinned, ptr, "cudaFreeHost"); }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* ptr) {
  const auto allocation = Memory::Get().Find(ptr, 0);
  *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, nullptr};
  if (allocation) {
    const bool pinned = allocation->kind == MemoryKind::kPinned;
    *attributes = {.type = pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice,
                   .device = allocation->device,
                   .devicePointer = const_cast<void*>(ptr),
                   .hostPointer = pinned ? const_cast<void*>(ptr) : nullptr};
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* func, enum cudaFuncAttribute attr, int value) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  if (attr == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (value < 0 || value > kMaxSharedBytes) return Result(cudaErrorInvalidValue);
  runtime.shared_memory_limits[func] = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attr, const void* func) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  *attr = {};
  attr->maxThreadsPerBlock = kMaxThreads;
  attr->maxDynamicSharedSizeBytes = SharedLimitLocked(runtime, func);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* numBlocks, const void* func,
                                                          int blockSize, size_t dynamicSMemSize) {
  if (blockSize < 1 || blockSize > kMaxThreads || dynamicSMemSize > SharedMemory::kMaxBytes) {
    return Result(cudaErrorInvalidValue);
  }
  const int shared = static_cast<int>(dynamicSMemSize) + kReservedSharedBytes;
  *numBlocks = std::min({kThreadsPerMultiprocessor / blockSize,
                         kSharedBytesPerMultiprocessor / shared, kBlocksPerMultiprocessor});
  return cudaSuccess;
}

}  // extern "C"

}  // namespace cuda_emulation
