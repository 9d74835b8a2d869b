#include "tests/cuda_emulation/counters.h"

#include <atomic>

namespace cuda_emulation {
namespace {

std::atomic<uint64_t> launches = 0;
std::atomic<uint64_t> blocks = 0;
std::atomic<uint64_t> bank_conflicts = 0;

}  // namespace

Counters ReadCounters() {
  return {.launches = launches, .blocks = blocks, .bank_conflicts = bank_conflicts};
}

void ResetCounters() { launches = blocks = bank_conflicts = 0; }

void AddToCounters(const Counters& more) {
  launches += more.launches;
  blocks += more.blocks;
  bank_conflicts += more.bank_conflicts;
}

}  // namespace cuda_emulation
