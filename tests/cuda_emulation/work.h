// What a stream does, piece by piece.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "tests/cuda_emulation/block.h"
#include "tests/cuda_emulation/launch.h"

namespace cuda_emulation {

/// A place in a stream's queue; it is passed once all before it is done.
struct Mark {
  std::shared_ptr<CUstream_st> stream;
  uint64_t position = 0;                            // number of pieces of work before it
  std::chrono::steady_clock::time_point time = {};  // when it was passed
};

struct KernelWork {
  std::shared_ptr<const KernelCall> call;
  LaunchShape shape;
};

/// Rows of `width` bytes.
struct CopyWork {
  std::byte* target = nullptr;
  size_t target_pitch = 0;
  const std::byte* source = nullptr;
  size_t source_pitch = 0;
  size_t width = 0;
  size_t height = 1;
  std::shared_ptr<const std::vector<std::byte>> staged =
      nullptr;  // owns the source, if it was copied

  size_t target_bytes() const { return height == 0 ? 0 : (height - 1) * target_pitch + width; }
  size_t source_bytes() const { return height == 0 ? 0 : (height - 1) * source_pitch + width; }
};

struct FillWork {
  std::byte* target = nullptr;
  std::byte value = {};
  size_t size = 0;
};

/// Notes the time at which a mark is passed.
struct RecordWork {
  std::shared_ptr<Mark> mark;
};

/// Waits for a mark of another stream.
struct AwaitWork {
  std::shared_ptr<const Mark> mark;
};

using Work = std::variant<KernelWork, CopyWork, FillWork, RecordWork, AwaitWork>;

/// Violation if the work cannot be right on this device: a copy or fill beyond an allocation, an
/// argument that points to no memory, or to another device's.
void CheckWork(const Work& work, int device);

/// True if the work uses memory in [begin, begin + size): for kernels, if an argument points there.
bool UsesMemory(const Work& work, const std::byte* begin, size_t size);

/// Carries out work other than to await.
void Execute(const Work& work, uint64_t seed);

}  // namespace cuda_emulation
