#include "kernels/cuda/device_memory.h"

#include <algorithm>
#include <utility>

namespace shoal::cuda {
namespace {

/// What an allocation takes: the runtime hands out multiples of this.
constexpr int64_t kGranuleBytes = 512;

}  // namespace

DeviceMemory::DeviceMemory(std::shared_ptr<CudaStream> stream, int64_t limit_bytes)
    : stream_(std::move(stream)), limit_bytes_(limit_bytes) {}

DeviceMemory::~DeviceMemory() {
  if (!stream_->Drain()) return;
  for (const auto& [data, bytes] : sizes_) cudaFree(data);
}

absl::StatusOr<void*> DeviceMemory::Allocate(int64_t bytes, Contents contents,
                                             std::string_view what) {
  SHOAL_CHECK(!stream_->is_recording(), "an allocation inside a recording: {}", what);
  RETURN_IF_ERROR(stream_->status());
  int64_t taken_bytes = 0;
  if (bytes < 0 || __builtin_add_overflow(bytes, kGranuleBytes - 1, &taken_bytes) ||
      taken_bytes / kGranuleBytes * kGranuleBytes > FreeBytes()) {
    return absl::ResourceExhaustedError(fmt::format(
        "GPU memory: {} needs {} bytes, {} of {} are left", what,
        bytes < 0 ? "more than 2^63" : fmt::to_string(bytes), FreeBytes(), limit_bytes_));
  }
  taken_bytes = std::max(taken_bytes / kGranuleBytes, int64_t{1}) * kGranuleBytes;
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max(bytes, int64_t{1}));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // no failure of the device: the next call shall not find it
    return absl::ResourceExhaustedError(
        fmt::format("GPU memory: the device refused {} bytes for {} ({} of {} left by our count)",
                    bytes, what, FreeBytes(), limit_bytes_));
  }
  if (!stream_->Check(error, "cudaMalloc")) return stream_->status();
  sizes_.emplace(data, taken_bytes);
  used_bytes_ += taken_bytes;
  if (contents == Contents::kZeros && bytes > 0) {
    stream_->Check(cudaMemsetAsync(data, 0, bytes, stream_->get()), "cudaMemsetAsync");
    RETURN_IF_ERROR(stream_->status());
  }
  return data;
}

void DeviceMemory::Free(void* data) {
  const auto found = sizes_.find(data);
  SHOAL_CHECK(found != sizes_.end(), "memory of somebody else is given back");
  if (!stream_->Drain() || !stream_->Check(cudaFree(data), "cudaFree")) return;
  used_bytes_ -= found->second;
  sizes_.erase(found);
}

Workspace::Workspace(std::shared_ptr<CudaStream> stream, std::shared_ptr<DeviceMemory> memory,
                     Contents contents)
    : stream_(std::move(stream)), memory_(std::move(memory)), contents_(contents) {}

void* Workspace::Reserve(size_t bytes) {
  if (bytes <= capacity_) return data_;
  SHOAL_CHECK(!stream_->is_recording(),
              "working memory of {} bytes inside a recording, {} are there", bytes, capacity_);
  // Graphs keep using what they were recorded with.
  if (data_ != nullptr && !stream_->has_recorded()) memory_->Free(data_);
  data_ = nullptr;
  capacity_ = 0;
  const absl::StatusOr<void*> data =
      memory_->Allocate(static_cast<int64_t>(bytes), contents_, "the ops' working memory");
  if (!data.ok()) {
    stream_->Fail(data.status());
    return nullptr;
  }
  data_ = *data;
  capacity_ = bytes;
  return data_;
}

}  // namespace shoal::cuda
