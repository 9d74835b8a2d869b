// Carries out the blocks of a kernel on the calling thread of the host: a fiber for each thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/cuda_emulation/access_checker.h"
#include "tests/cuda_emulation/device.h"
#include "tests/cuda_emulation/fiber.h"
#include "tests/cuda_emulation/launch.h"
#include "tests/cuda_emulation/random.h"
#include "tests/cuda_emulation/shared_memory.h"

namespace cuda_emulation {

inline constexpr int kWarpSize = 32;

/// Size of a launch.
struct LaunchShape {
  dim3 grid = {};
  dim3 block = {};
  size_t shared_bytes = 0;
};

/// When asynchronous copies land: at once, when they are waited for, or some so and some so.
enum class Landing { kAtOnce, kLate, kMixed };

/// What a lane brings to a collective of its warp; the last lane to come carries it out for all.
using Operands = std::span<void* const, kWarpSize>;

/// A copy that was not waited for. Without a source: of zeros.
struct PendingCopy {
  void* target = nullptr;
  const void* source = nullptr;
  bool landed = false;
};

class BlockRunner;
struct Warp;

/// A thread of a block, and its fiber, which outlives the block.
struct Thread {
  Thread(BlockRunner* its_runner, int number);

  BlockRunner* runner;
  Warp* warp = nullptr;
  int lane;
  int id;  // in the block
  uint3 index = {};
  Thread* neighbours[2] = {};       // the lanes after and before, in a circle
  std::vector<PendingCopy> copies;  // not complete, in the order of their issue
  std::vector<int> groups;          // of copies that are not complete: num_issued at their end
  int num_issued = 0;               // copies
  int num_complete = 0;             // copies of the groups that were waited for
  Fiber fiber;
};

/// The kernel's thread that this thread of the host is just carrying out; null in host code.
extern constinit thread_local Thread* current_thread;

/// 32 threads. Lanes that can go on take turns without a detour through the scheduler. Each lane
/// that exists is in one of runnable, arrived, at_barrier, ended.
struct Warp {
  uint32_t lanes = 0;  // that exist
  uint32_t runnable = 0;
  uint32_t arrived = 0;  // wait in a collective
  uint32_t at_barrier = 0;
  uint32_t ended = 0;
  Opcode opcode = Opcode::kBarrier;
  uint32_t syncs = 0;  // __syncwarp() so far
  int turn = 0;        // collectives until the scheduler chooses again
  int direction = 0;   // neighbour that goes on after a lane, if it can
  void* operands[kWarpSize] = {};
  Thread* threads[kWarpSize] = {};
};

/// Runs blocks, one after the other. One for each thread of the host.
class BlockRunner {
 public:
  /// That of the calling thread.
  static BlockRunner& OfThisThread();

  BlockRunner();

  /// All blocks of a launch, in an order that depends on `seed`.
  void Run(const KernelCall& call, const LaunchShape& shape, uint64_t seed);

  /// The kernel for one thread of the block.
  void RunThread(Thread& thread);

  // For the running thread.
  void Rendezvous(Opcode opcode, uint32_t mask, void* operand);
  void Barrier();
  void CopyAsync16(void* shared, const void* global, bool valid);
  void CommitCopies();
  void WaitForCopies(int pending);
  const SharedMemory& shared_memory() const { return shared_memory_; }
  void CountBankConflicts(uint64_t count) { bank_conflicts_ += count; }

 private:
  void Prepare(const LaunchShape& shape);
  void RunBlock(uint64_t block);
  void Schedule();
  void RunWarp(Warp& warp, int turn);
  /// Hands over from the running fiber; returns in it.
  void SwitchTo(Fiber& from, Thread& next);
  /// Hands over to a lane that can go on, or to the scheduler.
  void GoOnAnywhere(Fiber& from, Warp& warp);
  /// The same from a lane that cannot go on.
  void GoOn(Thread& from);
  static void Land(const PendingCopy& copy);
  static void Complete(const PendingCopy& copy);
  [[noreturn]] void RefuseCollective(Opcode opcode, uint32_t mask) const;
  std::string DescribeWaits() const;

  Fiber scheduler_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::unique_ptr<Warp>> warps_;
  SharedMemory shared_memory_;
  AccessChecker checker_;

  // Of the launch.
  const KernelCall* call_ = nullptr;
  LaunchShape shape_;
  int num_threads_ = 0;
  int num_warps_ = 0;
  uint64_t bank_conflicts_ = 0;

  // Of the block.
  Random random_{0};
  Landing landing_ = Landing::kAtOnce;
  int num_alive_ = 0;
  int num_at_barrier_ = 0;
};

/// Whether the accesses of kernels are to be checked.
bool AreAccessesChecked();

/// Carries out a collective: `operands` are of its kind, one a lane.
void ExecuteCollective(Opcode opcode, Operands operands);

/// The instruction as it is called in reports.
const char* OpcodeName(Opcode opcode);

}  // namespace cuda_emulation
