// Finds accesses of a kernel to memory that nothing puts in order, whatever the schedule, and those
// beside their memory. Kernels that are compiled with -fsanitize-coverage=func,trace-loads,
// trace-stores report each load and store.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace cuda_emulation {

enum class Access : uint8_t { kRead, kWrite, kAtomic };

/// Who accessed a place last, and when.
struct Stamp {
  uint64_t run : 24;     // the block, among all that ever ran
  uint64_t epoch : 12;   // barriers of the block until then
  uint64_t sync : 11;    // barriers of the warp
  uint64_t thread : 10;  // of the block
  uint64_t valid : 1;
  uint64_t in_flight : 1;  // a copy that its thread has not waited for
  uint64_t atomic : 1;
  // Others did the same, and nothing puts this access after theirs.
  uint64_t other_lanes : 1;
  uint64_t other_warps : 1;
  uint64_t other_blocks : 1;
  uint64_t unused : 1;
};
static_assert(sizeof(Stamp) == sizeof(uint64_t));

/// The last accesses to two bytes.
struct Cell {
  static constexpr size_t kBytes = 2;

  Stamp write;
  Stamp read;  // after that write
};

/// The checker of a BlockRunner. Two accesses are in order if they are of one thread; if
/// __syncthreads() lies between, or, in a warp, __syncwarp(); if they are of different launches; or
/// if the one block made its writes known (__threadfence, then an atomic operation), and the other
/// one has heard of that (an atomic operation on the same address, then __threadfence).
class AccessChecker {
 public:
  void BeginLaunch(uint64_t num_blocks);
  /// `block`: its number in the launch. Shared memory is where it is until the next block.
  void BeginBlock(uint64_t block, const std::byte* shared, size_t shared_bytes);
  void EndBarrier() { ++epoch_; }

  /// An access of the running thread. Its stack, and memory of the host, are of no concern.
  void Note(Access access, const void* address, size_t size);
  void NoteFence();
  /// A copy of 16 bytes to shared memory has started; `global` null: of zeros.
  void NoteCopy(const void* shared, const void* global);
  /// The running thread has waited for it.
  void NoteCopyDone(const void* shared);

 private:
  static constexpr size_t kPageBytes = 4096;
  static constexpr size_t kCopyBytes = 16;

  /// A page of memory. Of one that is not a device's there are no cells.
  struct Page {
    uintptr_t number = 0;
    uintptr_t begin = 0;  // what of it may be accessed
    uintptr_t end = 0;
    Cell* cells = nullptr;
  };
  /// Until when a block's writes are known: all before that barrier, and those of the thread.
  struct Known {
    bool any = false;
    uint16_t epoch = 0;
    uint16_t thread = 0;
  };
  using KnownBlocks = std::vector<Known>;  // by the number of the block in the launch

  /// An access and the cells that it touches.
  struct Touch {
    Access access = Access::kRead;
    const void* address = nullptr;
    size_t size = 0;
    bool is_shared = false;  // of shared memory
    Cell* first = nullptr;
  };

  Stamp Now() const;
  bool Matters(Stamp stamp, bool is_shared) const;
  static void Merge(const KnownBlocks& from, KnownBlocks& to);
  bool IsOrdered(Stamp earlier, Stamp now) const;
  bool AreReadsOrdered(Stamp reads, Stamp now) const;
  void NoteCells(const Touch& touch);
  void NoteRead(Stamp now, bool is_shared, Cell& cell) const;
  void NoteAtomic(const void* address);
  const Page& FindPage(Access access, uintptr_t address, size_t size);
  Cell* CellsOfShared(const void* shared);
  [[noreturn]] void Report(const Touch& touch, const char* earlier, Stamp stamp) const;

  const std::byte* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  std::vector<Cell> shared_cells_;
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> page_cells_;
  std::array<Page, 256> pages_ = {};  // those last used, by number
  uint64_t generation_ = 0;           // of the memory that pages_ knows

  // Of the launch.
  uint64_t first_run_ = 0;
  uint64_t num_blocks_ = 0;
  std::unordered_map<const void*, KnownBlocks> known_;  // by the address of atomic operations

  // Of the block.
  uint64_t run_ = 0;
  uint64_t epoch_ = 0;
  bool has_unfenced_writes_ = false;
  KnownBlocks heard_of_;   // writes that come before what this block does
  KnownBlocks will_hear_;  // the same after the next fence
};

/// Of the block that the calling thread is just carrying out; null if it is not checked.
extern constinit thread_local AccessChecker* current_checker;

/// For functions that stand for an instruction.
inline void NoteAccess(Access access, const void* address, size_t size) {
  if (current_checker != nullptr) current_checker->Note(access, address, size);
}

}  // namespace cuda_emulation
