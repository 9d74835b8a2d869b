// The group of ranks that are threads of one process.
#pragma once

#include <memory>
#include <vector>

#include "kernels/communicator.h"

namespace shoal {

/// The communicators of `size` >= 1 ranks, in their order; they outlive each other. A collective
/// copies straight from the other ranks' memory, which every rank must be able to read. It returns
/// when the rank has what it wants and all others have what they want from it; a rank that waits
/// sleeps, so there may be more ranks than cores. A rank that stays away leaves the others waiting
/// for ever; one that disagrees about the collective ends the process (CHECK). Thread: each
/// communicator has its own.
std::vector<std::unique_ptr<Communicator>> MakeLocalGroup(int size);

}  // namespace shoal
