// What gpu_bench measures, as a table and as JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/status.h"

namespace shoal::bench {

/// What the machine can do at best, measured in the same run.
struct Ceilings {
  double copy_bytes_per_second = 0;  // read and written, both counted
  double read_bytes_per_second = 0;
  double matmul_flops_per_second = 0;  // bfloat16, by the vendor's library; 0: it is not there

  double bytes_per_second() const {
    return copy_bytes_per_second > read_bytes_per_second ? copy_bytes_per_second
                                                         : read_bytes_per_second;
  }
  /// Seconds that moving and computing so much takes at least.
  double IdealSeconds(double bytes, double flops) const;
};

/// What a row is to reach.
struct Target {
  enum class Unit { kPercent, kMicroseconds };  // of the ceiling, at least; or at most
  Unit unit = Unit::kPercent;
  double first = 0;
  double ambitious = 0;
};

/// One thing that was timed.
struct Row {
  std::string name;
  std::string shape;
  double seconds = 0;  // median
  double bytes = 0;    // that it must move; 0: not known
  double flops = 0;    // that it must compute
  std::optional<Target> target = {};
  std::vector<std::pair<std::string, double>> more = {};  // further figures for the JSON
  std::string note = {};                                  // why there is no time, if so
};

/// Time of the kernels of one name within a row.
struct KernelShare {
  std::string kernel;
  int64_t count = 0;
  double seconds = 0;
};

/// The machine as the CUDA runtime describes it.
struct Machine {
  std::string name;
  std::string compute_capability;
  int num_multiprocessors = 0;
  int64_t l2_bytes = 0;
  int64_t memory_bytes = 0;
  int driver = 0;  // in thousands and tens: 13000 is 13.0
};

/// Prints each row when it comes and keeps it.
class Report {
 public:
  /// `path`: where all rows so far are after every one, as JSON; empty: nowhere.
  Report(std::string command, std::string scale, std::string path)
      : command_(std::move(command)), scale_(std::move(scale)), path_(std::move(path)) {}

  void SetMachine(Machine machine) { machine_ = std::move(machine); }
  void SetCeilings(const Ceilings& ceilings) { ceilings_ = ceilings; }
  const Ceilings& ceilings() const { return ceilings_; }

  void Add(Row row);
  /// The time of the last row, kernel by kernel, by falling time.
  void AddKernels(std::vector<KernelShare> kernels);

  /// Writes the rows so far, whole or not at all. INTERNAL names the path.
  absl::Status Save() const;

 private:
  struct Entry {
    Row row;
    std::vector<KernelShare> kernels;
  };

  /// Of the ceiling, in [0, 1]; nothing where bytes and flops are not known.
  std::optional<double> Fraction(const Row& row) const;
  /// "ambitious", "first" or "no"; empty: the row has no target.
  std::string Reached(const Row& row) const;
  /// See tests/gpu/README.md for the fields.
  std::string ToJson() const;

  const std::string command_;
  const std::string scale_;
  const std::string path_;
  Machine machine_;
  Ceilings ceilings_;
  std::vector<Entry> entries_;
};

}  // namespace shoal::bench
