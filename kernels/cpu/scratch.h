// Scratch: working memory of an op, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace shoal {

/// Memory on a 64-byte boundary that grows at the first sight of a larger shape and is never given
/// back, so that steps of known shapes allocate nothing. Growing drops the contents.
template <typename T>
class Scratch {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  /// At least `count` elements, uninitialised where they are new.
  T* Reserve(int64_t count) {
    if (count > capacity_) {
      memory_.reset(new (kAlignment) std::byte[count * sizeof(T)]);
      capacity_ = count;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(std::byte* memory) const { operator delete[](memory, kAlignment); }
  };

  std::unique_ptr<std::byte[], Delete> memory_;
  int64_t capacity_ = 0;
};

}  // namespace shoal
