#include "tests/cuda_emulation/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "tests/cuda_emulation/report.h"

namespace cuda_emulation {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kFrontBytes = 256;  // watched before an allocation
constexpr size_t kMaxFreed = 4096;   // allocations whose place is kept
constexpr std::byte kPoison{0xff};
constexpr unsigned int kCanaries = 30;

// From this size on memory is not touched before it is used: it begins as copies of one file.
constexpr size_t kLazyBytes = 1 << 20;
constexpr size_t kPoisonFileBytes = 4 << 20;

constexpr size_t RoundUp(size_t size, size_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

/// A file in memory of kPoisonFileBytes times 0xff; -1 if there can be none.
int PoisonFile() {
  static const int kFile = [] {
    const int file = memfd_create("poison", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, kPoisonFileBytes) != 0) return -1;
    void* mapping = mmap(nullptr, kPoisonFileBytes, PROT_WRITE, MAP_SHARED, file, 0);
    if (mapping == MAP_FAILED) return -1;
    std::memset(mapping, static_cast<int>(kPoison), kPoisonFileBytes);
    munmap(mapping, kPoisonFileBytes);
    return file;
  }();
  return kFile;
}

/// Replaces whole pages by such as hold 0xff, or 0, everywhere.
bool ReplacePages(std::byte* begin, size_t size, std::byte value) {
  constexpr int kFlags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  if (value == std::byte{0}) {
    return mmap(begin, size, PROT_READ | PROT_WRITE, kFlags | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
  }
  const int file = PoisonFile();
  if (file < 0) return false;
  for (size_t done = 0; done < size; done += kPoisonFileBytes) {
    if (mmap(begin + done, std::min(size - done, kPoisonFileBytes), PROT_READ | PROT_WRITE, kFlags,
             file, 0) == MAP_FAILED) {
      return false;
    }
  }
  return true;
}

/// Another value for each of a row of allocations, so that what is copied from beside one to beside
/// another shows.
std::byte CanaryOf(unsigned int number) { return std::byte(0xfe - number % kCanaries); }

/// All of an allocation but its guard pages.
bool Protect(const Allocation& allocation, bool accessible) {
  return mprotect(allocation.mapping + kPageBytes, allocation.mapping_bytes - 2 * kPageBytes,
                  accessible ? PROT_READ | PROT_WRITE : PROT_NONE) == 0;
}

}  // namespace

void FillMemory(std::byte* begin, std::byte value, size_t size) {
  if (size >= kLazyBytes && (value == kPoison || value == std::byte{0})) {
    auto* first =
        reinterpret_cast<std::byte*>(RoundUp(reinterpret_cast<uintptr_t>(begin), kPageBytes));
    const size_t head = static_cast<size_t>(first - begin);
    const size_t pages = (size - head) / kPageBytes * kPageBytes;
    if (ReplacePages(first, pages, value)) {
      std::memset(begin, static_cast<int>(value), head);
      std::memset(first + pages, static_cast<int>(value), size - head - pages);
      return;
    }
  }
  std::memset(begin, static_cast<int>(value), size);
}

Memory& Memory::Get() {
  static auto* const kMemory = new Memory();
  return *kMemory;
}

// From the first allocation on, for host code may go wrong before any kernel runs.
Memory::Memory() { InstallSignalHandler(); }

void* Memory::Allocate(MemoryKind kind, int device, size_t size) {
  const size_t rounded = RoundUp(size, kAlignment);
  const size_t usable = RoundUp(rounded + kFrontBytes, kPageBytes);
  Allocation allocation = {.kind = kind, .device = device, .size = size};
  allocation.mapping_bytes = usable + 2 * kPageBytes;
  void* mapping = mmap(nullptr, allocation.mapping_bytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  allocation.mapping = static_cast<std::byte*>(mapping);
  std::byte* const end = allocation.mapping + kPageBytes + usable;
  if (!Protect(allocation, true)) {
    munmap(mapping, allocation.mapping_bytes);
    return nullptr;
  }
  allocation.begin = end - rounded;
  FillMemory(allocation.begin, kPoison, size);
  allocation.canary = CanaryOf(num_allocations_.fetch_add(1, std::memory_order_relaxed));
  std::memset(allocation.begin - kFrontBytes, static_cast<int>(allocation.canary), kFrontBytes);
  std::memset(allocation.end(), static_cast<int>(allocation.canary),
              static_cast<size_t>(end - allocation.end()));
  const std::lock_guard lock(mutex_);
  live_[allocation.mapping] = allocation;
  if (!IsAccessible(allocation)) Protect(allocation, false);
  if (kind == MemoryKind::kDevice) used_[device] += rounded;
  return allocation.begin;
}

bool Memory::Free(MemoryKind kind, void* begin) {
  const std::lock_guard lock(mutex_);
  auto found = live_.upper_bound(static_cast<std::byte*>(begin));
  if (found == live_.begin()) return false;
  --found;
  const Allocation allocation = found->second;
  if (allocation.begin != begin || allocation.kind != kind) return false;
  CheckMargins(allocation);
  live_.erase(found);
  generation_.fetch_add(1, std::memory_order_relaxed);
  if (kind == MemoryKind::kDevice) {
    used_[allocation.device] -= RoundUp(allocation.size, kAlignment);
  }
  mmap(allocation.mapping, allocation.mapping_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  freed_[allocation.mapping] = allocation;
  freed_order_.push_back(allocation.mapping);
  if (freed_order_.size() > kMaxFreed) {
    const auto oldest = freed_.find(freed_order_.front());
    munmap(oldest->second.mapping, oldest->second.mapping_bytes);
    freed_.erase(oldest);
    freed_order_.pop_front();
  }
  return true;
}

std::optional<Allocation> Memory::Find(const void* address, size_t size) const {
  const auto* begin = static_cast<const std::byte*>(address);
  const std::lock_guard lock(mutex_);
  auto found = live_.upper_bound(begin);
  if (found == live_.begin()) return std::nullopt;
  const Allocation& allocation = (--found)->second;
  if (begin < allocation.begin || begin > allocation.end()) return std::nullopt;
  if (size > static_cast<size_t>(allocation.end() - begin)) return std::nullopt;
  return allocation;
}

void Memory::CheckMargins() const {
  const std::lock_guard lock(mutex_);
  for (const auto& [mapping, allocation] : live_) {
    if (IsAccessible(allocation)) CheckMargins(allocation);
  }
}

bool Memory::IsAccessible(const Allocation& allocation) const {
  return allocation.kind != MemoryKind::kDevice || !inaccessible_.contains(allocation.device);
}

void Memory::SetAccessible(int device, bool accessible) {
  const std::lock_guard lock(mutex_);
  if (accessible == !inaccessible_.contains(device)) return;
  if (accessible) {
    inaccessible_.erase(device);
  } else {
    inaccessible_.insert(device);
  }
  for (const auto& [mapping, allocation] : live_) {
    if (allocation.kind == MemoryKind::kDevice && allocation.device == device) {
      Protect(allocation, accessible);
    }
  }
}

void Memory::CheckMargins(const Allocation& allocation) const {
  if (!IsAccessible(allocation)) Protect(allocation, true);
  const auto is_canary = [&allocation](std::byte byte) { return byte == allocation.canary; };
  const std::byte* const end = allocation.mapping + allocation.mapping_bytes - kPageBytes;
  if (!std::all_of(allocation.begin - kFrontBytes, allocation.begin, is_canary)) {
    Violation("something was written before the start of an allocation of %zu bytes at %p",
              allocation.size, static_cast<void*>(allocation.begin));
  }
  const std::byte* const changed =
      std::find_if_not(static_cast<const std::byte*>(allocation.end()), end, is_canary);
  if (changed != end) {
    Violation("something was written %td bytes past the end of an allocation of %zu bytes at %p",
              changed - allocation.end(), allocation.size, static_cast<void*>(allocation.begin));
  }
  if (!IsAccessible(allocation)) Protect(allocation, false);
}

size_t Memory::UsedBytes(int device) const {
  const std::lock_guard lock(mutex_);
  const auto found = used_.find(device);
  return found == used_.end() ? 0 : found->second;
}

std::string Memory::Describe(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return "";
  for (const auto* allocations : {&live_, &freed_}) {
    auto found = allocations->upper_bound(at);
    if (found == allocations->begin()) continue;
    const Allocation& allocation = (--found)->second;
    if (at >= allocation.mapping + allocation.mapping_bytes) continue;
    std::string where;
    if (at < allocation.begin) {
      where = std::to_string(allocation.begin - at) + " bytes before the start of ";
    } else if (at >= allocation.end()) {
      where = std::to_string(at - allocation.end()) + " bytes past the end of ";
    } else {
      where = "byte " + std::to_string(at - allocation.begin) + " of ";
    }
    return where + (allocations == &freed_ ? "a freed " : "a ") +
           (allocation.kind == MemoryKind::kDevice ? "device" : "pinned host") + " allocation of " +
           std::to_string(allocation.size) + " bytes";
  }
  return "";
}

void CheckDeviceMemory(const void* address, size_t size, const char* what) {
  struct Known {
    const std::byte* begin = nullptr;
    const std::byte* end = nullptr;
    uint64_t generation = 0;
  };
  static constinit thread_local Known known;
  const Memory& memory = Memory::Get();
  const auto* at = static_cast<const std::byte*>(address);
  if (at >= known.begin && at < known.end && size <= static_cast<size_t>(known.end - at) &&
      known.generation == memory.generation()) {
    return;
  }
  const uint64_t generation = memory.generation();
  const std::optional<Allocation> found = memory.Find(address, size);
  if (!found || found->kind != MemoryKind::kDevice) {
    const std::string where = memory.Describe(address);
    Violation("%s %p, %zu bytes: %s", what, address, size,
              where.empty() ? "not memory of a device" : where.c_str());
  }
  known = {found->begin, found->end(), generation};
}

}  // namespace cuda_emulation
