// Machine: how much of it this process may use.
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

namespace shoal {

/// Cores by the scheduling mask and by the cgroup's CPU quota, whichever is fewer; at least 1.
int AvailableCores();

/// MemAvailable, or the cgroup's memory limit (v1 or v2) if that is less.
int64_t AvailableMemoryBytes();

/// The folders whose limits bind a process with these `memberships` (/proc/self/cgroup): its cgroup
/// in v1's hierarchy of `controller`, else in v2's, then each of its parents up to the mount's
/// root. Some need not exist: in a container the path is often the host's.
std::vector<std::string> CgroupFolders(std::istream& memberships, const std::string& controller);

}  // namespace shoal
