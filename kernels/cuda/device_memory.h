// DeviceMemory: the memory that a rank has taken on its device, and how much it may still take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/status.h"

namespace shoal::cuda {

/// What new memory holds.
enum class Contents { kZeros, kAny };

/// Each piece is an allocation of its own, so that tools which check bounds see those of each
/// tensor. All are given back at the end, unless the device hangs: giving back would wait for it.
/// Thread: that of the stream.
class DeviceMemory {
 public:
  DeviceMemory(std::shared_ptr<CudaStream> stream, int64_t limit_bytes);
  ~DeviceMemory();

  /// Memory for what is enqueued from now on, aligned to 256 bytes; not null even if of 0 bytes.
  /// `what` needs it, says the message of RESOURCE_EXHAUSTED. Negative: more than 2^63 bytes.
  absl::StatusOr<void*> Allocate(int64_t bytes, Contents contents, std::string_view what);
  /// Gives back what Allocate() gave. Waits for the device.
  void Free(void* data);

  int64_t FreeBytes() const { return limit_bytes_ - used_bytes_; }

 private:
  const std::shared_ptr<CudaStream> stream_;
  const int64_t limit_bytes_;
  int64_t used_bytes_ = 0;
  std::unordered_map<void*, int64_t> sizes_;
};

/// Memory that ops use while they run, one after the other. It grows at the first sight of a larger
/// shape; then it has new contents. Thread: that of the stream.
class Workspace {
 public:
  Workspace(std::shared_ptr<CudaStream> stream, std::shared_ptr<DeviceMemory> memory,
            Contents contents);

  /// At least `bytes`, aligned to 256 bytes. Null: there are not so many, and the stream has failed
  /// with RESOURCE_EXHAUSTED. Inside a recording it must not grow (CHECK).
  void* Reserve(size_t bytes);

 private:
  const std::shared_ptr<CudaStream> stream_;
  const std::shared_ptr<DeviceMemory> memory_;
  const Contents contents_;
  void* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace shoal::cuda
