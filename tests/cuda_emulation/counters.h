// The counters that tests read.
#pragma once

#include "tests/cuda_emulation/emulator.h"

namespace cuda_emulation {

void AddToCounters(const Counters& more);

}  // namespace cuda_emulation
