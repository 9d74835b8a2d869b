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

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

/// Cores' worth of time per period that one folder allows, rounded up.
int64_t CpuQuota(const std::string& folder) {
  int64_t quota = 0, period = 0;
  std::ifstream v2(folder + "/cpu.max");
  if (!(v2 >> quota >> period)) {
    quota = ReadNumber(folder + "/cpu.cfs_quota_us").value_or(-1);
    period = ReadNumber(folder + "/cpu.cfs_period_us").value_or(0);
  }
  if (quota <= 0 || period <= 0) return kNoLimit;
  return (quota + period - 1) / period;
}

int64_t MemoryLimit(const std::string& folder) {
  return std::min(ReadNumber(folder + "/memory.max").value_or(kNoLimit),
                  ReadNumber(folder + "/memory.limit_in_bytes").value_or(kNoLimit));
}

/// The strictest limit on this process.
int64_t CgroupLimit(const std::string& controller, int64_t (*limit_of)(const std::string& folder)) {
  std::ifstream memberships("/proc/self/cgroup");
  int64_t limit = kNoLimit;
  for (const std::string& folder : CgroupFolders(memberships, controller)) {
    limit = std::min(limit, limit_of(folder));
  }
  return limit;
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
  cores = std::min(cores, CgroupLimit("cpu", CpuQuota));
  return static_cast<int>(std::max<int64_t>(cores, 1));
}

int64_t AvailableMemoryBytes() {
  return std::min(MemAvailableBytes(), CgroupLimit("memory", MemoryLimit));
}

std::vector<std::string> CgroupFolders(std::istream& memberships, const std::string& controller) {
  std::string root = "/sys/fs/cgroup", path;
  // Lines are id:controllers:path, the controllers of v2 being none.
  for (std::string line; std::getline(memberships, line);) {
    std::istringstream fields(line);
    std::string id, controllers, rest;
    std::getline(std::getline(std::getline(fields, id, ':'), controllers, ':'), rest);
    if (controllers.empty()) path = rest;
    if (("," + controllers + ",").find("," + controller + ",") == std::string::npos) continue;
    root += "/" + controller;
    path = rest;
    break;
  }
  std::vector<std::string> folders;
  for (; path.size() > 1; path.resize(path.rfind('/'))) folders.push_back(root + path);
  folders.push_back(root);
  return folders;
}

}  // namespace shoal
