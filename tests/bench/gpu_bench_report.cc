#include "tests/bench/gpu_bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace shoal::bench {
namespace {

using Json = nlohmann::ordered_json;

std::string FormatSeconds(double seconds) {
  return seconds < 1e-2 ? fmt::format("{:.1f} us", seconds * 1e6)
                        : fmt::format("{:.2f} ms", seconds * 1e3);
}

std::string FormatTarget(const Target& target) {
  const char* unit = target.unit == Target::Unit::kPercent ? "%" : "us";
  return fmt::format("{:g} / {:g} {}", target.first, target.ambitious, unit);
}

Json ToJson(const Target& target) {
  return {{"unit", target.unit == Target::Unit::kPercent ? "percent of ceiling" : "microseconds"},
          {"first", target.first},
          {"ambitious", target.ambitious}};
}

/// A figure, or null where it is not known.
Json Known(double value) { return value > 0 ? Json(value) : Json(nullptr); }

}  // namespace

double Ceilings::IdealSeconds(double bytes, double flops) const {
  double seconds = bytes_per_second() > 0 ? bytes / bytes_per_second() : 0;
  if (matmul_flops_per_second > 0) seconds = std::max(seconds, flops / matmul_flops_per_second);
  return seconds;
}

std::optional<double> Report::Fraction(const Row& row) const {
  const double ideal = ceilings_.IdealSeconds(row.bytes, row.flops);
  if (row.seconds <= 0 || ideal <= 0) return std::nullopt;
  return ideal / row.seconds;
}

std::string Report::Reached(const Row& row) const {
  if (!row.target || row.seconds <= 0) return "";
  const auto reaches = [&](double bar) {
    if (row.target->unit == Target::Unit::kMicroseconds) return row.seconds * 1e6 <= bar;
    return Fraction(row).value_or(0) * 100 >= bar;
  };
  if (reaches(row.target->ambitious)) return "ambitious";
  return reaches(row.target->first) ? "first" : "no";
}

void Report::Add(Row row) {
  if (entries_.empty()) {
    fmt::print("{:<26} {:<22} {:>11} {:>10} {:>12} {:>6}  {:<14} {}\n", command_, "shape", "time",
               "GB/s", "TFLOP/s", "%", "targets", "reached");
  }
  const auto rate = [&](double amount, double unit) {
    return amount > 0 && row.seconds > 0 ? fmt::format("{:.1f}", amount / row.seconds / unit) : "";
  };
  const std::optional<double> fraction = Fraction(row);
  fmt::print("{:<26} {:<22} {:>11} {:>10} {:>12} {:>6}  {:<14} {}\n", row.name, row.shape,
             row.seconds > 0 ? FormatSeconds(row.seconds) : "-", rate(row.bytes, 1e9),
             rate(row.flops, 1e12), fraction ? fmt::format("{:.1f}", *fraction * 100) : "",
             row.target ? FormatTarget(*row.target) : "",
             row.note.empty() ? Reached(row) : row.note);
  std::fflush(stdout);
  entries_.push_back({.row = std::move(row), .kernels = {}});
  Save().IgnoreError();
}

void Report::AddKernels(std::vector<KernelShare> kernels) {
  constexpr size_t kShown = 6;
  std::ranges::sort(kernels, std::ranges::greater(), &KernelShare::seconds);
  double total = 0;
  for (const KernelShare& kernel : kernels) total += kernel.seconds;
  for (size_t i = 0; i < std::min(kernels.size(), kShown); ++i) {
    const KernelShare& kernel = kernels[i];
    fmt::print("  {:5.1f} % {:<52} {:4} x {:>10}\n", 100 * kernel.seconds / total, kernel.kernel,
               kernel.count, FormatSeconds(kernel.seconds / static_cast<double>(kernel.count)));
  }
  std::fflush(stdout);
  if (!entries_.empty()) entries_.back().kernels = std::move(kernels);
}

absl::Status Report::Save() const {
  if (path_.empty()) return absl::OkStatus();
  const std::string unfinished = path_ + ".unfinished";
  std::ofstream file(unfinished);
  file << ToJson();
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(unfinished, path_, error);
  if (file && !error) return absl::OkStatus();
  return absl::InternalError(fmt::format("{}: cannot be written", path_));
}

std::string Report::ToJson() const {
  Json rows = Json::array();
  for (const auto& [row, kernels] : entries_) {
    const std::optional<double> fraction = Fraction(row);
    Json object = {{"name", row.name},
                   {"shape", row.shape},
                   {"seconds", Known(row.seconds)},
                   {"bytes", Known(row.bytes)},
                   {"flops", Known(row.flops)},
                   {"fraction_of_ceiling", fraction ? Json(*fraction) : Json(nullptr)}};
    if (row.target) {
      object["target"] = bench::ToJson(*row.target);
      object["reached"] = Reached(row);
    }
    if (!row.note.empty()) object["note"] = row.note;
    for (const auto& [name, value] : row.more) object[name] = value;
    for (const KernelShare& kernel : kernels) {
      object["kernels"].push_back(
          {{"name", kernel.kernel}, {"count", kernel.count}, {"seconds", kernel.seconds}});
    }
    rows.push_back(std::move(object));
  }
  const Json json = {{"command", command_},
                     {"scale", scale_},
                     {"machine",
                      {{"name", machine_.name},
                       {"compute_capability", machine_.compute_capability},
                       {"num_multiprocessors", machine_.num_multiprocessors},
                       {"l2_bytes", machine_.l2_bytes},
                       {"memory_bytes", machine_.memory_bytes},
                       {"driver", machine_.driver}}},
                     {"ceilings",
                      {{"copy_bytes_per_second", Known(ceilings_.copy_bytes_per_second)},
                       {"read_bytes_per_second", Known(ceilings_.read_bytes_per_second)},
                       {"matmul_flops_per_second", Known(ceilings_.matmul_flops_per_second)}}},
                     {"rows", std::move(rows)}};
  return json.dump(2) + "\n";
}

}  // namespace shoal::bench
