#include "kernels/cpu/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace shoal {
namespace {

/// The first number in the file; none if there is no file, or no number ("max").
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

/// Folder of this process's cgroup, v2 or the v1 hierarchy of `controller`. Inside a container the
/// path is often the host's and does not exist; then the mount's root is ours.
std::string CgroupFolder(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t path = line.rfind(':');
    const bool v2 = line.starts_with("0::");
    if (path == std::string::npos || !(v2 || line.find(controller) < path)) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
    const std::string folder = root + line.substr(path + 1);
    return access((folder + "/cgroup.procs").c_str(), F_OK) == 0 ? folder : root;
  }
  return "/sys/fs/cgroup";
}

/// Cores' worth of time per period, rounded up; none without a quota.
std::optional<int64_t> CpuQuota() {
  const std::string folder = CgroupFolder("cpu");
  int64_t quota = 0, period = 0;
  std::ifstream v2(folder + "/cpu.max");
  if (!(v2 >> quota >> period)) {
    quota = ReadNumber(folder + "/cpu.cfs_quota_us").value_or(-1);
    period = ReadNumber(folder + "/cpu.cfs_period_us").value_or(0);
  }
  if (quota <= 0 || period <= 0) return std::nullopt;
  return (quota + period - 1) / period;
}

int64_t MemAvailableBytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string name;
    int64_t kib = 0;
    if (fields >> name >> kib && name == "MemAvailable:") return kib * 1024;
  }
  return int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

}  // namespace

int AvailableCores() {
  cpu_set_t mask;
  int64_t cores = sched_getaffinity(0, sizeof(mask), &mask) == 0 ? CPU_COUNT(&mask)
                                                                 : sysconf(_SC_NPROCESSORS_ONLN);
  cores = std::min(cores, CpuQuota().value_or(cores));
  return static_cast<int>(std::max<int64_t>(cores, 1));
}

int64_t AvailableMemoryBytes() {
  const std::string folder = CgroupFolder("memory");
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const int64_t limit = std::min(ReadNumber(folder + "/memory.max").value_or(kNone),
                                 ReadNumber(folder + "/memory.limit_in_bytes").value_or(kNone));
  return std::min(MemAvailableBytes(), limit);
}

}  // namespace shoal
