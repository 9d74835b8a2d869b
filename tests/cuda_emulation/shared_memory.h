// The dynamic shared memory of a block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

/// Room for the dynamic shared memory of one block after the other. Its end is a page that cannot
/// be accessed; of what lies before it, changes are found.
class SharedMemory {
 public:
  static constexpr size_t kAlignment = 128;
  static constexpr size_t kMaxBytes = 227 << 10;

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  /// Makes place for `size` bytes of 0xff: no number in any format.
  void Reset(size_t size);

  /// Violation if the block wrote beside its memory.
  void CheckMargins() const;

  std::byte* begin() const { return begin_; }
  size_t size() const { return size_; }
  bool Contains(const void* address, size_t bytes) const {
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - begin_);
    return offset <= size_ && bytes <= size_ - offset;
  }
  /// True for the pages that cannot be accessed.
  bool IsGuard(const void* address) const;

 private:
  std::byte* mapping_ = nullptr;
  std::byte* begin_ = nullptr;
  size_t size_ = 0;
};

}  // namespace cuda_emulation
