#include "tests/cuda_emulation/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "tests/cuda_emulation/report.h"

namespace cuda_emulation {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kCapacity = (SharedMemory::kMaxBytes + kPageBytes) / kPageBytes * kPageBytes;
constexpr size_t kFrontBytes = 256;  // watched before the memory
constexpr std::byte kPoison{0xff};
constexpr std::byte kCanary{0xfe};

}  // namespace

SharedMemory::SharedMemory() {
  void* mapping = mmap(nullptr, kCapacity + 2 * kPageBytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED ||
      mprotect(static_cast<std::byte*>(mapping) + kPageBytes, kCapacity, PROT_READ | PROT_WRITE)) {
    Violation("no memory for a block's shared memory");
  }
  mapping_ = static_cast<std::byte*>(mapping);
  begin_ = mapping_ + kPageBytes + kCapacity;
}

SharedMemory::~SharedMemory() { munmap(mapping_, kCapacity + 2 * kPageBytes); }

void SharedMemory::Reset(size_t size) {
  std::byte* end = mapping_ + kPageBytes + kCapacity;
  begin_ = end - (size + kAlignment - 1) / kAlignment * kAlignment;
  size_ = size;
  std::memset(begin_ - kFrontBytes, static_cast<int>(kCanary), kFrontBytes);
  std::memset(begin_, static_cast<int>(kPoison), size);
  std::memset(begin_ + size, static_cast<int>(kCanary), static_cast<size_t>(end - begin_) - size);
}

void SharedMemory::CheckMargins() const {
  const std::byte* end = mapping_ + kPageBytes + kCapacity;
  const auto is_canary = [](std::byte byte) { return byte == kCanary; };
  if (!std::all_of(begin_ - kFrontBytes, begin_, is_canary)) {
    Violation("write before the start of the dynamic shared memory");
  }
  const std::byte* changed =
      std::find_if_not(static_cast<const std::byte*>(begin_ + size_), end, is_canary);
  if (changed != end) {
    Violation("write %zu bytes past the end of the dynamic shared memory of %zu bytes",
              static_cast<size_t>(changed - begin_ - size_), size_);
  }
}

bool SharedMemory::IsGuard(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  return (at >= mapping_ && at < mapping_ + kPageBytes) ||
         (at >= mapping_ + kPageBytes + kCapacity && at < mapping_ + kCapacity + 2 * kPageBytes);
}

}  // namespace cuda_emulation
