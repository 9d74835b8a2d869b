// Memory of the emulated devices, and pinned memory of the host. Each allocation ends, as nearly as
// its alignment allows, at a page that cannot be accessed; the few bytes between are watched.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>

namespace cuda_emulation {

enum class MemoryKind { kDevice, kPinned };

struct Allocation {
  MemoryKind kind = MemoryKind::kDevice;
  int device = 0;  // of pinned memory: any
  std::byte* begin = nullptr;
  size_t size = 0;
  std::byte* mapping = nullptr;  // with the guard pages
  size_t mapping_bytes = 0;
  std::byte canary = {};  // fills what is watched around it

  std::byte* end() const { return begin + size; }
};

/// All memory that was allocated and is not freed, and a while longer where it was. For any thread.
class Memory {
 public:
  static constexpr size_t kAlignment = 256;

  /// Of the process; never destroyed.
  static Memory& Get();

  /// `size` bytes of 0xff (no number in any format); null if the host has no more.
  void* Allocate(MemoryKind kind, int device, size_t size);

  /// False if nothing of that kind begins there.
  bool Free(MemoryKind kind, void* begin);

  /// The allocation that [address, address + size) lies in. An empty range lies where it begins.
  std::optional<Allocation> Find(const void* address, size_t size) const;

  /// Violation if something was written beside an allocation that is accessible.
  void CheckMargins() const;

  /// Lets accesses to a device's memory through, or not: host code has no business there.
  void SetAccessible(int device, bool accessible);

  /// Bytes that an allocation of `size` takes.
  static constexpr size_t TakenBytes(size_t size) {
    return (size + kAlignment - 1) / kAlignment * kAlignment;
  }
  /// Bytes that a device's allocations take.
  size_t UsedBytes(int device) const;

  /// What lies at an address, for reports: "4 bytes past the end of ...". Empty: nothing of ours.
  /// For signal handlers: gives up instead of waiting.
  std::string Describe(const void* address) const;

  /// Changes whenever something is freed.
  uint64_t generation() const { return generation_.load(std::memory_order_relaxed); }

 private:
  Memory();
  void CheckMargins(const Allocation& allocation) const;
  bool IsAccessible(const Allocation& allocation) const;

  mutable std::mutex mutex_;
  std::map<const std::byte*, Allocation> live_;  // by the start of the mapping
  std::map<const std::byte*, Allocation> freed_;
  std::deque<const std::byte*> freed_order_;
  std::map<int, size_t> used_;  // by device
  std::set<int> inaccessible_;  // devices
  std::atomic<uint64_t> generation_ = 1;
  std::atomic<unsigned int> num_allocations_ = 0;
};

/// Violation, with `what` it is, unless the range lies in memory of a device.
void CheckDeviceMemory(const void* address, size_t size, const char* what);

/// Sets all bytes of a range of device or pinned memory.
void FillMemory(std::byte* begin, std::byte value, size_t size);

}  // namespace cuda_emulation
