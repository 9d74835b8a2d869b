#include "tests/bench/gpu_bench_scale.h"

#include <algorithm>

namespace shoal::bench {
namespace {

Scale Scale16b() {
  return {.name = "16b",
          .preset = "16b",
          .timing = {},
          .buffer_bytes = int64_t{4} << 30,
          .matmul_size = 8192,
          .chain_length = 512,
          .decode_tokens = {1, 8, 64, 256},
          .prefill_tokens = {2048, 8192},
          .decode_attention = {{1, 2048}, {32, 2048}, {128, 512}},
          .prefill_attention = {4, 2048},
          .sampling_rows = 64,
          .decode_steps = {{1, 512}, {8, 512}, {32, 512}, {64, 512}, {256, 512}, {128, 2048}},
          .prefill_steps = {{1, 512}, {4, 2048}},
          .host_step = {64, 512}};
}

Scale ScaleToy() {
  return {.name = "toy",
          .preset = "tiny",
          .timing = {.min_rounds = 1, .max_rounds = 1, .max_seconds = 0},
          .buffer_bytes = int64_t{1} << 18,
          .matmul_size = 64,
          .chain_length = 8,
          .decode_tokens = {1, 3},
          .prefill_tokens = {40},
          .decode_attention = {{1, 40}, {3, 70}},
          .prefill_attention = {2, 20},
          .sampling_rows = 2,
          .decode_steps = {{1, 40}, {3, 40}},
          .prefill_steps = {{1, 20}, {2, 20}},
          .host_step = {2, 40}};
}

constexpr Target Percent(double first, double ambitious) {
  return {.unit = Target::Unit::kPercent, .first = first, .ambitious = ambitious};
}
constexpr Target Microseconds(double first, double ambitious) {
  return {.unit = Target::Unit::kMicroseconds, .first = first, .ambitious = ambitious};
}

struct NamedTarget {
  const char* row;
  const char* shape;
  Target target;
};

/// Of an H200, in fractions of its ceilings where that can be said.
constexpr NamedTarget kTargets[] = {
    {"graph gap per kernel", "chain of 512", Microseconds(2.0, 1.2)},
    {"norm + route", "T=1", Microseconds(10, 5)},
    {"norm + route", "T=8", Microseconds(10, 5)},
    {"norm + route", "T=64", Microseconds(10, 5)},
    {"norm + route", "T=256", Microseconds(10, 5)},
    {"expert plan", "T=1", Microseconds(8, 4)},
    {"expert plan", "T=8", Microseconds(8, 4)},
    {"expert plan", "T=64", Microseconds(8, 4)},
    {"expert plan", "T=256", Microseconds(8, 4)},
    {"expert gate/up", "T=64", Percent(55, 80)},
    {"expert gate/up", "T=256", Percent(55, 80)},
    {"expert down", "T=64", Percent(50, 78)},
    {"expert down", "T=256", Percent(50, 78)},
    {"expert pair", "T=1", Percent(30, 55)},
    {"expert pair", "T=8", Percent(45, 70)},
    {"expert pair", "T=2048", Percent(30, 55)},
    {"expert pair", "T=8192", Percent(35, 65)},
    {"qkv", "T=1", Percent(55, 75)},
    {"qkv", "T=8", Percent(55, 75)},
    {"qkv", "T=64", Percent(55, 75)},
    {"qkv", "T=2048", Percent(85, 92)},
    {"qkv", "T=8192", Percent(85, 92)},
    {"o", "T=1", Percent(55, 75)},
    {"o", "T=8", Percent(55, 75)},
    {"o", "T=64", Percent(55, 75)},
    {"o", "T=2048", Percent(85, 92)},
    {"o", "T=8192", Percent(85, 92)},
    {"head", "T=1", Percent(55, 75)},
    {"head", "T=8", Percent(55, 75)},
    {"head", "T=64", Percent(55, 75)},
    {"decode attention", "B=1 context 2048", Microseconds(14, 8)},
    {"decode attention", "B=32 context 2048", Percent(60, 85)},
    {"decode attention", "B=128 context 512", Percent(60, 85)},
    {"prefill attention", "4 x 2048", Percent(30, 55)},
    {"sample top-p", "64 rows", Microseconds(80, 30)},
    {"decode step", "B=1 context 512", Percent(31, 52)},
    {"decode step", "B=8 context 512", Percent(43, 67)},
    {"decode step", "B=32 context 512", Percent(51, 75)},
    {"decode step", "B=64 context 512", Percent(52, 76)},
    {"decode step", "B=256 context 512", Percent(50, 75)},
    {"decode step", "B=128 context 2048", Percent(52, 79)},
    {"prefill step", "4 x 2048", Percent(33, 63)},
    {"prefill step", "1 x 512", Percent(40, 68)},
};

}  // namespace

int64_t Scale::max_tokens() const {
  int64_t tokens = std::max(std::ranges::max(decode_tokens), std::ranges::max(prefill_tokens));
  for (const Sequences& step : decode_steps) tokens = std::max(tokens, step.count);
  for (const Sequences& step : prefill_steps) tokens = std::max(tokens, step.count * step.context);
  return std::max(tokens, prefill_attention.count * prefill_attention.context);
}

absl::StatusOr<Scale> ScaleByName(const std::string& name) {
  if (name == "16b") return Scale16b();
  if (name == "toy") return ScaleToy();
  return absl::InvalidArgumentError(
      fmt::format("there is no scale \"{}\", expected 16b or toy", name));
}

std::optional<Target> TargetOf(const Scale& scale, const std::string& row,
                               const std::string& shape) {
  if (!scale.has_targets()) return std::nullopt;
  for (const NamedTarget& named : kTargets) {
    if (row == named.row && shape == named.shape) return named.target;
  }
  return std::nullopt;
}

}  // namespace shoal::bench
