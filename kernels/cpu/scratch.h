// Scratch: working memory of an op, kept from call to call.
#pragma once

#include <cstdint>
#include <memory>

namespace shoal {

/// Memory that grows at the first sight of a larger shape and is never given back, so that steps of
/// known shapes allocate nothing. The contents do not survive the next Reserve.
template <typename T>
class Scratch {
 public:
  /// At least `count` elements, uninitialised.
  T* Reserve(int64_t count) {
    if (count > capacity_) {
      elements_ = std::make_unique_for_overwrite<T[]>(count);
      capacity_ = count;
    }
    return elements_.get();
  }

 private:
  std::unique_ptr<T[]> elements_;
  int64_t capacity_ = 0;
};

}  // namespace shoal
