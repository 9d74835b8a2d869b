// Mailbox: a few slots through which one thread hands values to another, without locks.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <utility>

#include "kernels/status.h"

namespace shoal {

/// First in, first out; at most `kSlots` values at once, which the two sides know not to exceed.
/// Thread: one puts, one takes.
template <typename T, uint32_t kSlots>
class Mailbox {
  static_assert(std::has_single_bit(kSlots), "the counters wrap at a multiple of kSlots");

 public:
  /// Hands over `value`; never waits.
  void Put(T value) {
    const uint32_t put = num_put_.load(std::memory_order_relaxed);
    SHOAL_CHECK(put - num_taken_.load(std::memory_order_acquire) < kSlots,
                "all {} slots of the mailbox are full", kSlots);
    slots_[put % kSlots] = std::move(value);
    num_put_.store(put + 1, std::memory_order_release);
    num_put_.notify_one();
  }

  /// Waits for the oldest value.
  T Take() {
    const uint32_t taken = num_taken_.load(std::memory_order_relaxed);
    num_put_.wait(taken, std::memory_order_acquire);  // equal: nothing is there
    T value = std::move(slots_[taken % kSlots]);
    num_taken_.store(taken + 1, std::memory_order_release);
    return value;
  }

 private:
  std::array<T, kSlots> slots_;
  std::atomic<uint32_t> num_put_{0};
  std::atomic<uint32_t> num_taken_{0};
};

}  // namespace shoal
