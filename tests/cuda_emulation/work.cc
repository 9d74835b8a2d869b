#include "tests/cuda_emulation/work.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "tests/cuda_emulation/memory.h"
#include "tests/cuda_emulation/report.h"

namespace cuda_emulation {
namespace {

void CheckRange(const std::byte* begin, size_t size, int device, const char* what) {
  if (size == 0) return;
  const Memory& memory = Memory::Get();
  const std::optional<Allocation> allocation = memory.Find(begin, size);
  if (allocation && allocation->kind == MemoryKind::kDevice && allocation->device != device) {
    Violation("%s memory of device %d on device %d", what, allocation->device, device);
  }
  if (allocation) return;
  const std::string where = memory.Describe(begin);
  if (!where.empty()) {
    Violation("%s %zu bytes from %s", what, size, where.c_str());
  }
}

/// An address may be null, of this device, or of pinned memory; it may also be just past the end.
void CheckArguments(const KernelCall& call, int device) {
  const Memory& memory = Memory::Get();
  for (const auto& [address, name] : call.addresses()) {
    if (address == nullptr) continue;
    const std::optional<Allocation> allocation = memory.Find(address, 0);
    if (allocation && (allocation->kind != MemoryKind::kDevice || allocation->device == device)) {
      continue;
    }
    std::string where = memory.Describe(address);
    if (allocation) where += " on device " + std::to_string(allocation->device);
    if (where.empty()) where = "no memory of a device";
    Violation("kernel %s gets %p on device %d%s%s: %s", FunctionName(call.function()).c_str(),
              address, device, *name == '\0' ? "" : " as ", name, where.c_str());
  }
}

void Copy(const CopyWork& copy) {
  if (copy.width == 0) return;
  for (size_t row = 0; row < copy.height; ++row) {
    std::memmove(copy.target + row * copy.target_pitch, copy.source + row * copy.source_pitch,
                 copy.width);
  }
}

bool Overlaps(const std::byte* begin, size_t size, const std::byte* other, size_t other_size) {
  return begin < other + other_size && other < begin + size;
}

}  // namespace

void CheckWork(const Work& work, int device) {
  if (const auto* kernel = std::get_if<KernelWork>(&work)) {
    CheckArguments(*kernel->call, device);
  } else if (const auto* copy = std::get_if<CopyWork>(&work)) {
    CheckRange(copy->target, copy->target_bytes(), device, "copy to");
    CheckRange(copy->source, copy->source_bytes(), device, "copy of");
  } else if (const auto* fill = std::get_if<FillWork>(&work)) {
    CheckRange(fill->target, fill->size, device, "memset of");
  }
}

bool UsesMemory(const Work& work, const std::byte* begin, size_t size) {
  if (const auto* kernel = std::get_if<KernelWork>(&work)) {
    return std::ranges::any_of(kernel->call->addresses(), [&](const ArgumentAddress& argument) {
      return argument.address >= begin && argument.address < begin + size;
    });
  }
  if (const auto* copy = std::get_if<CopyWork>(&work)) {
    return Overlaps(begin, size, copy->target, copy->target_bytes()) ||
           Overlaps(begin, size, copy->source, copy->source_bytes());
  }
  const auto* fill = std::get_if<FillWork>(&work);
  return fill != nullptr && Overlaps(begin, size, fill->target, fill->size);
}

void Execute(const Work& work, uint64_t seed) {
  if (const auto* kernel = std::get_if<KernelWork>(&work)) {
    BlockRunner::OfThisThread().Run(*kernel->call, kernel->shape, seed);
  } else if (const auto* copy = std::get_if<CopyWork>(&work)) {
    Copy(*copy);
  } else if (const auto* fill = std::get_if<FillWork>(&work)) {
    FillMemory(fill->target, fill->value, fill->size);
  } else if (const auto* record = std::get_if<RecordWork>(&work)) {
    record->mark->time = std::chrono::steady_clock::now();
  }
}

}  // namespace cuda_emulation
