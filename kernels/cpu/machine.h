// Machine: how much of it this process may use.
#pragma once

#include <cstdint>

namespace shoal {

/// Cores by the scheduling mask and by the cgroup's CPU quota, whichever is fewer; at least 1.
int AvailableCores();

/// MemAvailable, or the cgroup's memory limit (v1 or v2) if that is less.
int64_t AvailableMemoryBytes();

}  // namespace shoal
