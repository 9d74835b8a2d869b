#include "tests/cuda_emulation/block.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/cuda_emulation/counters.h"
#include "tests/cuda_emulation/memory.h"
#include "tests/cuda_emulation/report.h"

constinit thread_local uint3 threadIdx = {};
constinit thread_local uint3 blockIdx = {};
constinit thread_local dim3 blockDim = {};
constinit thread_local dim3 gridDim = {};

namespace cuda_emulation {

constinit thread_local Thread* current_thread = nullptr;
constinit thread_local const void* current_kernel = nullptr;

namespace {

constexpr uint32_t kFullMask = 0xffffffffu;
constexpr int kPoison = 0xff;

}  // namespace

Thread::Thread(BlockRunner* its_runner, int number)
    : runner(its_runner),
      lane(number % kWarpSize),
      id(number),
      fiber(
          [](void* self) {
            Fiber::Begin();
            auto& thread = *static_cast<Thread*>(self);
            for (;;) thread.runner->RunThread(thread);
          },
          this, static_cast<size_t>(number)) {}

BlockRunner& BlockRunner::OfThisThread() {
  thread_local BlockRunner runner;
  return runner;
}

BlockRunner::BlockRunner() { InstallSignalHandler(); }

void BlockRunner::Prepare(const LaunchShape& shape) {
  shape_ = shape;
  blockDim = shape.block;
  gridDim = shape.grid;
  num_threads_ = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  num_warps_ = (num_threads_ + kWarpSize - 1) / kWarpSize;
  while (warps_.size() < static_cast<size_t>(num_warps_)) {
    warps_.push_back(std::make_unique<Warp>());
    for (Thread*& thread : warps_.back()->threads) {
      threads_.push_back(std::make_unique<Thread>(this, static_cast<int>(threads_.size())));
      thread = threads_.back().get();
      thread->warp = warps_.back().get();
    }
    for (int i = 0; i < kWarpSize; ++i) {
      Thread* const* threads = warps_.back()->threads;
      threads[i]->neighbours[0] = threads[(i + 1) % kWarpSize];
      threads[i]->neighbours[1] = threads[(i + kWarpSize - 1) % kWarpSize];
    }
  }
  for (int i = 0; i < num_threads_; ++i) {
    const auto n = static_cast<unsigned int>(i);
    threads_[n]->index = {n % shape.block.x, n / shape.block.x % shape.block.y,
                          n / (shape.block.x * shape.block.y)};
  }
}

void BlockRunner::Run(const KernelCall& call, const LaunchShape& shape, uint64_t seed) {
  call_ = &call;
  Prepare(shape);
  current_kernel = call.function();
  bank_conflicts_ = 0;

  // A permutation that needs no memory: steps of a stride that has no divisor with the number.
  const uint64_t num_blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  random_ = Random(seed);
  current_checker = AreAccessesChecked() ? &checker_ : nullptr;
  if (current_checker != nullptr) checker_.BeginLaunch(num_blocks);
  uint64_t stride = 1 + random_.Next() % num_blocks;
  while (std::gcd(stride, num_blocks) != 1) ++stride;
  uint64_t block = random_.Next() % num_blocks;
  for (uint64_t i = 0; i < num_blocks; ++i, block = (block + stride) % num_blocks) {
    blockIdx = {static_cast<unsigned int>(block % shape.grid.x),
                static_cast<unsigned int>(block / shape.grid.x % shape.grid.y),
                static_cast<unsigned int>(block / (uint64_t{shape.grid.x} * shape.grid.y))};
    RunBlock(block);
  }
  current_kernel = nullptr;
  current_checker = nullptr;
  AddToCounters({.launches = 1, .blocks = num_blocks, .bank_conflicts = bank_conflicts_});
}

void BlockRunner::RunBlock(uint64_t block) {
  landing_ = static_cast<Landing>(random_.Below(3));
  num_alive_ = num_threads_;
  num_at_barrier_ = 0;
  shared_memory_.Reset(shape_.shared_bytes);
  for (int i = 0; i < num_warps_; ++i) {
    const int lanes = std::min(num_threads_ - i * kWarpSize, kWarpSize);
    Warp& warp = *warps_[static_cast<size_t>(i)];
    warp.lanes = lanes == kWarpSize ? kFullMask : (1u << lanes) - 1;
    warp.runnable = warp.lanes;
    warp.arrived = warp.at_barrier = warp.ended = warp.syncs = 0;
  }
  checker_.BeginBlock(block, shared_memory_.begin(), shared_memory_.size());
  Schedule();
  shared_memory_.CheckMargins();
}

void BlockRunner::Schedule() {
  constexpr int kUntilBlocked = std::numeric_limits<int>::max();
  while (num_alive_ > 0) {
    const auto num_warps = static_cast<uint32_t>(num_warps_);
    const uint32_t first = random_.Below(num_warps);
    bool progress = false;
    if (random_.Next() & 1) {  // one warp runs ahead as far as it can
      for (uint32_t i = 0; i < num_warps && !progress; ++i) {
        Warp& warp = *warps_[(first + i) % num_warps];
        progress = warp.runnable != 0;
        if (progress) RunWarp(warp, kUntilBlocked);
      }
    } else {  // all take a step
      const bool ascending = random_.Next() & 1;
      for (uint32_t i = 0; i < num_warps; ++i) {
        Warp& warp = *warps_[(first + (ascending ? i : num_warps - i)) % num_warps];
        if (warp.runnable == 0) continue;
        progress = true;
        RunWarp(warp, 1);
      }
    }
    if (!progress) {
      Violation("deadlock in block (%u, %u, %u): %s", blockIdx.x, blockIdx.y, blockIdx.z,
                DescribeWaits().c_str());
    }
  }
}

void BlockRunner::RunWarp(Warp& warp, int turn) {
  warp.turn = turn;
  GoOnAnywhere(scheduler_, warp);
  current_thread = nullptr;
}

inline void BlockRunner::SwitchTo(Fiber& from, Thread& next) {
  current_thread = &next;
  threadIdx = next.index;
  from.SwitchTo(next.fiber);
}

void BlockRunner::GoOnAnywhere(Fiber& from, Warp& warp) {
  if (warp.runnable == 0 || warp.turn == 0) {
    from.SwitchTo(scheduler_);
    return;
  }
  const auto first = static_cast<int>(random_.Below(kWarpSize));
  const int offset = std::countr_zero(std::rotr(warp.runnable, first));
  Thread& next = *warp.threads[(first + offset) % kWarpSize];
  warp.direction = first & 1;
  if (&from != &next.fiber) SwitchTo(from, next);
}

inline void BlockRunner::GoOn(Thread& from) {
  // Nothing here but a prediction lies between one lane and the next: it is the hottest path.
  Thread& next = *from.neighbours[from.warp->direction];
  if ((from.warp->runnable & 1u << next.lane) != 0) [[likely]] {
    SwitchTo(from.fiber, next);
  } else {
    GoOnAnywhere(from.fiber, *from.warp);
  }
}

void BlockRunner::RunThread(Thread& thread) {
  call_->Run();
  if (thread.num_complete != thread.num_issued) {
    Violation("%d asynchronous copies were never waited for",
              thread.num_issued - thread.num_complete);
  }
  if (num_at_barrier_ > 0) {
    Violation("the thread ends while others wait in __syncthreads: %s", DescribeWaits().c_str());
  }
  Warp& warp = *thread.warp;
  if (warp.arrived != 0) {
    Violation("the thread ends while lanes of its warp wait in %s: %s", OpcodeName(warp.opcode),
              DescribeWaits().c_str());
  }
  thread.groups.clear();
  warp.runnable &= ~(1u << thread.lane);
  warp.ended |= 1u << thread.lane;
  --num_alive_;
  GoOn(thread);
}

void BlockRunner::Rendezvous(Opcode opcode, uint32_t mask, void* operand) {
  Thread& thread = *current_thread;
  Warp& warp = *thread.warp;
  if (warp.arrived == 0) warp.opcode = opcode;
  if (warp.opcode != opcode || mask != kFullMask || warp.lanes != kFullMask) [[unlikely]] {
    RefuseCollective(opcode, mask);
  }
  warp.operands[thread.lane] = operand;
  warp.arrived |= 1u << thread.lane;
  if (warp.arrived == kFullMask) {
    ExecuteCollective(opcode, warp.operands);
    if (opcode == Opcode::kBarrier) ++warp.syncs;
    warp.arrived = 0;
    warp.runnable = kFullMask;
    --warp.turn;
    GoOnAnywhere(thread.fiber, warp);
  } else {
    warp.runnable &= ~(1u << thread.lane);
    GoOn(thread);
  }
}

void BlockRunner::RefuseCollective(Opcode opcode, uint32_t mask) const {
  const Warp& warp = *current_thread->warp;
  if (mask != kFullMask) {
    Violation("%s with mask 0x%08x; only full warps are emulated", OpcodeName(opcode), mask);
  }
  if (warp.lanes != kFullMask) {
    Violation("%s in a warp that has not 32 threads", OpcodeName(opcode));
  }
  Violation("divergence: the thread is at %s, other lanes of its warp are at %s: %s",
            OpcodeName(opcode), OpcodeName(warp.opcode), DescribeWaits().c_str());
}

void BlockRunner::Barrier() {
  Thread& thread = *current_thread;
  Warp& warp = *thread.warp;
  if (num_alive_ != num_threads_) {
    Violation("__syncthreads after %d threads of the block have ended", num_threads_ - num_alive_);
  }
  if (++num_at_barrier_ == num_threads_) {
    num_at_barrier_ = 0;
    checker_.EndBarrier();
    for (int i = 0; i < num_warps_; ++i) {
      Warp& each = *warps_[static_cast<size_t>(i)];
      each.runnable = each.lanes;
      each.at_barrier = 0;
    }
    warp.turn = 0;
    GoOnAnywhere(thread.fiber, warp);
  } else {
    warp.runnable &= ~(1u << thread.lane);
    warp.at_barrier |= 1u << thread.lane;
    GoOn(thread);
  }
}

void BlockRunner::CopyAsync16(void* shared, const void* global, bool valid) {
  constexpr size_t kBytes = 16;
  Thread& thread = *current_thread;
  if (reinterpret_cast<uintptr_t>(shared) % kBytes != 0 ||
      reinterpret_cast<uintptr_t>(global) % kBytes != 0) {
    Violation("cp.async of 16 bytes from %p to shared memory + %u: not aligned to 16 bytes", global,
              SharedOffset(shared));
  }
  if (!shared_memory_.Contains(shared, kBytes)) {
    Violation("cp.async to shared memory + %d, which has %zu bytes",
              static_cast<int>(SharedOffset(shared)), shared_memory_.size());
  }
  if (valid) CheckDeviceMemory(global, kBytes, "cp.async from");
  if (current_checker != nullptr) current_checker->NoteCopy(shared, valid ? global : nullptr);
  PendingCopy copy = {shared, valid ? global : nullptr};
  copy.landed =
      landing_ == Landing::kAtOnce || (landing_ == Landing::kMixed && (random_.Next() & 1));
  if (copy.landed) {
    Land(copy);
  } else {
    // Nobody may read the place, nor write there, until the copy has landed.
    std::memset(shared, kPoison, kBytes);
  }
  thread.copies.push_back(copy);
  ++thread.num_issued;
}

void BlockRunner::Land(const PendingCopy& copy) {
  constexpr size_t kBytes = 16;
  if (copy.source == nullptr) {
    std::memset(copy.target, 0, kBytes);
  } else {
    std::memcpy(copy.target, copy.source, kBytes);
  }
}

void BlockRunner::Complete(const PendingCopy& copy) {
  if (!copy.landed) Land(copy);
  if (current_checker != nullptr) current_checker->NoteCopyDone(copy.target);
}

void BlockRunner::CommitCopies() {
  Thread& thread = *current_thread;
  thread.groups.push_back(thread.num_issued);
}

void BlockRunner::WaitForCopies(int pending) {
  Thread& thread = *current_thread;
  const auto num_groups = static_cast<int>(thread.groups.size());
  if (num_groups <= pending) return;
  const auto done = thread.groups.begin() + (num_groups - pending);
  const int num_complete = *(done - 1);
  const auto last = thread.copies.begin() + (num_complete - thread.num_complete);
  std::for_each(thread.copies.begin(), last, Complete);
  thread.copies.erase(thread.copies.begin(), last);
  thread.groups.erase(thread.groups.begin(), done);
  thread.num_complete = num_complete;
}

std::string BlockRunner::DescribeWaits() const {
  const auto describe = [this](int i) -> std::string {
    const Warp& warp = *threads_[static_cast<size_t>(i)]->warp;
    const uint32_t lane = 1u << (i % kWarpSize);
    if ((warp.arrived & lane) != 0) return std::string("in ") + OpcodeName(warp.opcode);
    if ((warp.at_barrier & lane) != 0) return "in __syncthreads";
    return (warp.ended & lane) != 0 ? "ended" : "on their way";
  };
  std::string text;
  for (int first = 0; first < num_threads_;) {
    const std::string state = describe(first);
    int last = first;
    while (last + 1 < num_threads_ && describe(last + 1) == state) ++last;
    text += (first == 0 ? "threads " : ", ") + std::to_string(first) + "-" + std::to_string(last) +
            " " + state;
    first = last + 1;
  }
  return text;
}

void ThreadFence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (current_checker != nullptr) current_checker->NoteFence();
}

void NoteAtomic(const void* address, size_t size) { NoteAccess(Access::kAtomic, address, size); }

void BlockBarrier() { current_thread->runner->Barrier(); }

void* DynamicSharedMemory(size_t size, size_t alignment) {
  const SharedMemory& memory = current_thread->runner->shared_memory();
  if (size > memory.size()) {
    Violation("the kernel uses %zu bytes of shared memory, the launch gave %zu", size,
              memory.size());
  }
  if (alignment > SharedMemory::kAlignment) {
    Violation("shared memory aligned to %zu bytes; the emulator gives %zu", alignment,
              SharedMemory::kAlignment);
  }
  return memory.begin();
}

uint32_t SharedOffset(const void* shared) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(shared) -
                               current_thread->runner->shared_memory().begin());
}

void CopyAsync16(void* shared, const void* global, bool valid) {
  current_thread->runner->CopyAsync16(shared, global, valid);
}
void CommitCopies() { current_thread->runner->CommitCopies(); }
void WaitForCopies(int pending) { current_thread->runner->WaitForCopies(pending); }

}  // namespace cuda_emulation
