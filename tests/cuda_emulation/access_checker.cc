#include "tests/cuda_emulation/access_checker.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "tests/cuda_emulation/block.h"
#include "tests/cuda_emulation/memory.h"
#include "tests/cuda_emulation/report.h"

namespace cuda_emulation {

constinit thread_local AccessChecker* current_checker = nullptr;

namespace {

constexpr uint64_t kRunMask = (1 << 24) - 1;
constexpr size_t kMaxPages = 16384;  // of which cells are kept from launch to launch

std::atomic<uint64_t> next_run = 0;

const char* Doing(Access access) {
  return access == Access::kRead    ? "reads"
         : access == Access::kWrite ? "writes"
                                    : "changes atomically";
}

/// Whether barrier `a` comes after `b`, of which there are few between.
bool IsLater(uint64_t a, uint64_t b) {
  constexpr uint64_t kEpochs = 1 << 12;
  return a != b && (a - b) % kEpochs < kEpochs / 2;
}

}  // namespace

void AccessChecker::BeginLaunch(uint64_t num_blocks) {
  // All runs of a launch follow each other; those of other threads' launches lie elsewhere.
  const uint64_t previous = first_run_;
  first_run_ = next_run.fetch_add(num_blocks) + 1;
  num_blocks_ = num_blocks;
  known_.clear();
  if (previous / (kRunMask + 1) != (first_run_ + num_blocks) / (kRunMask + 1)) {
    shared_cells_.clear();
    page_cells_.clear();
  }
  if (page_cells_.size() > kMaxPages) page_cells_.clear();
  if (generation_ != Memory::Get().generation() || page_cells_.empty()) {
    generation_ = Memory::Get().generation();
    pages_.fill({});
  }
}

void AccessChecker::BeginBlock(uint64_t block, const std::byte* shared, size_t shared_bytes) {
  run_ = first_run_ + block;
  epoch_ = 0;
  has_unfenced_writes_ = false;
  heard_of_.clear();
  will_hear_.clear();
  shared_ = shared;
  shared_bytes_ = shared_bytes;
  const size_t cells = (shared_bytes + Cell::kBytes - 1) / Cell::kBytes;
  if (shared_cells_.size() < cells) shared_cells_.resize(cells);
}

Stamp AccessChecker::Now() const {
  const Thread& thread = *current_thread;
  return {.run = run_ & kRunMask,
          .epoch = epoch_ & 0xfff,
          .sync = thread.warp->syncs & 0x7ff,
          .thread = static_cast<uint64_t>(thread.id),
          .valid = 1,
          .in_flight = 0,
          .atomic = 0,
          .other_lanes = 0,
          .other_warps = 0,
          .other_blocks = 0,
          .unused = 0};
}

/// Whether an access was of the same block, or to global memory of the same launch.
bool AccessChecker::Matters(Stamp stamp, bool is_shared) const {
  if (!stamp.valid) return false;
  if (is_shared) return stamp.run == (run_ & kRunMask);
  return ((stamp.run - first_run_) & kRunMask) < num_blocks_;
}

/// Whether the access of a stamp that matters, without the others', comes before now.
bool AccessChecker::IsOrdered(Stamp earlier, Stamp now) const {
  if (earlier.run != now.run) {
    const uint64_t block = (earlier.run - first_run_) & kRunMask;
    if (block >= heard_of_.size() || !heard_of_[block].any) return false;
    const Known& known = heard_of_[block];
    return IsLater(known.epoch, earlier.epoch) ||
           (known.epoch == earlier.epoch && known.thread == earlier.thread);
  }
  if (earlier.epoch != now.epoch || earlier.thread == now.thread) return true;
  return earlier.thread / kWarpSize == now.thread / kWarpSize && earlier.sync != now.sync;
}

/// The same, with the others'.
bool AccessChecker::AreReadsOrdered(Stamp reads, Stamp now) const {
  if (!IsOrdered(reads, now) || (reads.other_blocks && heard_of_.empty())) return false;
  if (reads.run != now.run || reads.epoch != now.epoch) return true;
  return !reads.other_warps && !(reads.other_lanes && reads.sync == now.sync);
}

void AccessChecker::NoteRead(Stamp now, bool is_shared, Cell& cell) const {
  const Stamp before = cell.read;
  cell.read = now;
  if (!Matters(before, is_shared)) return;
  if (before.run != now.run) {
    cell.read.other_blocks = 1;
    return;
  }
  cell.read.other_blocks = before.other_blocks;
  if (before.epoch != now.epoch) return;
  const bool same_warp = before.thread / kWarpSize == now.thread / kWarpSize;
  cell.read.other_warps = before.other_warps || !same_warp;
  cell.read.other_lanes =
      same_warp && before.sync == now.sync && (before.other_lanes || before.thread != now.thread);
}

void AccessChecker::NoteCells(const Touch& touch) {
  const Stamp now = Now();
  const size_t offset = reinterpret_cast<uintptr_t>(touch.address) % Cell::kBytes;
  const size_t count = (offset + touch.size + Cell::kBytes - 1) / Cell::kBytes;
  for (size_t i = 0; i < count; ++i) {
    Cell& cell = touch.first[i];
    const Stamp write = cell.write;
    bool both_atomic = false;
    bool same_epoch = false;
    if (Matters(write, touch.is_shared)) {
      if (write.in_flight && write.run == now.run) Report(touch, "is being copied to by", write);
      both_atomic = touch.access == Access::kAtomic && write.atomic;
      same_epoch = write.run == now.run && write.epoch == now.epoch;
      if (!both_atomic && (!IsOrdered(write, now) || (same_epoch && write.other_warps))) {
        Report(touch, write.atomic ? "was changed atomically by" : "was written by", write);
      }
    }
    if (touch.access == Access::kRead) {
      NoteRead(now, touch.is_shared, cell);
      continue;
    }
    if (Matters(cell.read, touch.is_shared) && !AreReadsOrdered(cell.read, now)) {
      Report(touch, "was read by", cell.read);
    }
    cell = {now, {}};
    cell.write.atomic = touch.access == Access::kAtomic;
    cell.write.other_warps =
        both_atomic && same_epoch && (write.other_warps || write.thread != now.thread);
  }
}

Cell* AccessChecker::CellsOfShared(const void* shared) {
  return &shared_cells_[static_cast<size_t>(static_cast<const std::byte*>(shared) - shared_) /
                        Cell::kBytes];
}

void AccessChecker::Note(Access access, const void* address, size_t size) {
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - shared_);
  if (offset < shared_bytes_) {
    if (size > shared_bytes_ - offset) {
      Violation("%s %zu bytes of shared memory + %zu, which has %zu bytes", Doing(access), size,
                offset, shared_bytes_);
    }
    return NoteCells({access, address, size, true, CellsOfShared(address)});
  }
  if (current_thread->fiber.IsStack(address)) return;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const Page& page = FindPage(access, at, size);
  if (page.cells == nullptr) return;
  if (access == Access::kWrite) has_unfenced_writes_ = true;
  if (access == Access::kAtomic) NoteAtomic(address);
  NoteCells({access, address, size, false, page.cells + at % kPageBytes / Cell::kBytes});
}

const AccessChecker::Page& AccessChecker::FindPage(Access access, uintptr_t address, size_t size) {
  const uintptr_t number = address / kPageBytes;
  Page& page = pages_[number % pages_.size()];
  if (page.number == number &&
      (page.cells == nullptr || (address >= page.begin && address + size <= page.end))) {
    return page;
  }
  const auto* pointer = reinterpret_cast<const std::byte*>(address);
  const std::optional<Allocation> found = Memory::Get().Find(pointer, size);
  if (!found || pointer == found->end()) {
    const std::string where = Memory::Get().Describe(pointer);
    const char* reach = Memory::Get().Find(pointer, 1) ? ", beyond its end" : "";
    if (!where.empty()) Violation("%s %zu bytes: %s%s", Doing(access), size, where.c_str(), reach);
    page = {.number = number};
    return page;
  }
  std::unique_ptr<Cell[]>& cells = page_cells_[number];
  if (cells == nullptr) cells = std::make_unique<Cell[]>(kPageBytes / Cell::kBytes + kCopyBytes);
  page = {.number = number,
          .begin = std::max(number * kPageBytes, reinterpret_cast<uintptr_t>(found->begin)),
          .end = std::min((number + 1) * kPageBytes, reinterpret_cast<uintptr_t>(found->end())),
          .cells = cells.get()};
  return page;
}

void AccessChecker::Merge(const KnownBlocks& from, KnownBlocks& to) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i].any && (!to[i].any || IsLater(from[i].epoch, to[i].epoch))) to[i] = from[i];
  }
}

/// Whoever comes to the address next hears of this block's writes and of what it has heard of.
void AccessChecker::NoteAtomic(const void* address) {
  KnownBlocks& known = known_[address];
  Merge(known, will_hear_);
  if (has_unfenced_writes_) return;
  const uint64_t block = run_ - first_run_;
  if (known.size() <= block) known.resize(block + 1);
  const Stamp now = Now();
  known[block] = {.any = true,
                  .epoch = static_cast<uint16_t>(now.epoch),
                  .thread = static_cast<uint16_t>(now.thread)};
  Merge(heard_of_, known);
}

void AccessChecker::NoteFence() {
  has_unfenced_writes_ = false;
  Merge(will_hear_, heard_of_);
}

void AccessChecker::NoteCopy(const void* shared, const void* global) {
  if (global != nullptr) Note(Access::kRead, global, kCopyBytes);
  Note(Access::kWrite, shared, kCopyBytes);
  Cell* const cells = CellsOfShared(shared);
  for (size_t i = 0; i < kCopyBytes / Cell::kBytes; ++i) cells[i].write.in_flight = 1;
}

void AccessChecker::NoteCopyDone(const void* shared) {
  const Stamp now = Now();
  Cell* const cells = CellsOfShared(shared);
  for (size_t i = 0; i < kCopyBytes / Cell::kBytes; ++i) cells[i].write = now;
}

void AccessChecker::Report(const Touch& touch, const char* earlier, Stamp stamp) const {
  const std::string where =
      touch.is_shared ? "shared memory + " +
                            std::to_string(static_cast<const std::byte*>(touch.address) - shared_)
                      : Memory::Get().Describe(touch.address);
  const uint64_t block = (stamp.run - first_run_) & kRunMask;
  Violation("race: %s %zu bytes, %s, with nothing to order it after what %s thread %u of %s",
            Doing(touch.access), touch.size, where.c_str(), earlier,
            static_cast<unsigned int>(stamp.thread),
            block == run_ - first_run_ ? "this block"
                                       : ("block number " + std::to_string(block)).c_str());
}

}  // namespace cuda_emulation

// What the compiler calls for each load and store.
#define CUDA_EMULATION_HOOKS(size)                                             \
  extern "C" void __sanitizer_cov_load##size(void* address) {                  \
    cuda_emulation::NoteAccess(cuda_emulation::Access::kRead, address, size);  \
  }                                                                            \
  extern "C" void __sanitizer_cov_store##size(void* address) {                 \
    cuda_emulation::NoteAccess(cuda_emulation::Access::kWrite, address, size); \
  }

CUDA_EMULATION_HOOKS(1)
CUDA_EMULATION_HOOKS(2)
CUDA_EMULATION_HOOKS(4)
CUDA_EMULATION_HOOKS(8)
CUDA_EMULATION_HOOKS(16)
