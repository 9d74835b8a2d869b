// Scratch: working memory of an op, kept from call to call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace shoal {

/// Bytes that a backend has taken: tensors and scratch. Thread: any.
using UsedBytes = std::atomic<int64_t>;

/// Memory on a 64-byte boundary that grows at the first sight of a larger shape and is never given
/// back, so that steps of known shapes allocate nothing. Growing drops the contents. Counted, but
/// not refused: the engine sees the largest shapes before it divides what is left.
template <typename T>
class Scratch {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  /// `used` outlives the scratch.
  explicit Scratch(UsedBytes* used) : used_(used) {}

  /// At least `count` elements, all bytes zero where they are new.
  T* Reserve(int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      *used_ -= std::exchange(capacity_, 0) * kElementBytes;
      memory_.reset(new (kAlignment) std::byte[count * sizeof(T)]());
      capacity_ = count;
      *used_ += count * kElementBytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr auto kElementBytes = static_cast<int64_t>(sizeof(T));
  struct Delete {
    void operator()(std::byte* memory) const { operator delete[](memory, kAlignment); }
  };

  UsedBytes* used_;
  std::unique_ptr<std::byte[], Delete> memory_;
  int64_t capacity_ = 0;
};

}  // namespace shoal
