// InputBuffer: inputs of ops, laid out on the host and brought to the device by one copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "kernels/device.h"

namespace shoal {

/// Parts one after the other, each in host memory and, at a fixed address, in the device's. Parts
/// of the same shapes in the same order lie in the same place every time. Thread: worker.
class InputBuffer {
 public:
  /// Bytes that a part of `bytes` takes.
  static constexpr int64_t PartBytes(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  /// `device` outlives the buffer. RESOURCE_EXHAUSTED if it has too little memory.
  static absl::StatusOr<InputBuffer> Create(int64_t capacity_bytes, Device* device);

  /// Forgets the parts. What has been uploaded stays as it is for the ops enqueued so far.
  void Clear() { size_bytes_ = 0; }

  /// The next part on the device.
  Tensor Add(DType dtype, std::initializer_list<int64_t> shape);

  /// A part on the host, to be written before the upload.
  template <typename T>
  std::span<T> Host(const Tensor& part) {
    const int64_t offset = part.as<std::byte>() - memory_.as<std::byte>();
    return {reinterpret_cast<T*>(host_.data() + offset),
            static_cast<size_t>(part.size_bytes()) / sizeof(T)};
  }

  /// Enqueues the copy of all parts.
  void Upload() { device_->CopyFromHost(host_.data(), memory_.Rows(0, size_bytes_)); }

 private:
  static constexpr int64_t kAlignment = 256;  // as Device::Allocate gives

  explicit InputBuffer(Device* device) : device_(device) {}

  Device* device_;
  std::vector<std::byte> host_;  // [capacity]
  Tensor memory_;                // [capacity] bytes
  int64_t size_bytes_ = 0;       // of the parts so far
};

}  // namespace shoal
