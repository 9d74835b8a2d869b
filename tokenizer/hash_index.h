// HashIndex: a flat hash table of numbers whose keys lie in the caller's own arrays.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace shoal {

/// Open addressing with linear probing, at most half full. It keeps a number per key and nothing
/// else; the caller says whether a number's key is the one looked for. Thread: any, once filled.
class HashIndex {
 public:
  explicit HashIndex(size_t max_entries)
      : slots_(std::bit_ceil(2 * max_entries + 1), kEmpty), mask_(slots_.size() - 1) {}

  /// Adds `number` (>= 0) under `hash`.
  void Insert(uint64_t hash, int32_t number) {
    size_t slot = Mix(hash) & mask_;
    while (slots_[slot] != kEmpty) slot = (slot + 1) & mask_;
    slots_[slot] = number;
  }

  /// The first inserted number under `hash` for which `is_key(number)` holds, or -1.
  template <typename IsKey>
  int32_t Find(uint64_t hash, const IsKey& is_key) const {
    for (size_t slot = Mix(hash) & mask_; slots_[slot] != kEmpty; slot = (slot + 1) & mask_) {
      if (is_key(slots_[slot])) return slots_[slot];
    }
    return kEmpty;
  }

 private:
  static constexpr int32_t kEmpty = -1;
  static uint64_t Mix(uint64_t hash) { return (hash * 0x9E3779B97F4A7C15) >> 32; }

  std::vector<int32_t> slots_;  // a power of two
  size_t mask_;
};

}  // namespace shoal
