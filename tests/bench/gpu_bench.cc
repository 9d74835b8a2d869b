// How near the CUDA backend comes to the limits of the GPU it runs on. Needs a driver and nothing
// else: weights are made on the device.
//
//   gpu_bench ceilings|kernels|model|tiles [--scale 16b|toy] [--device N] [--json FILE]
//
// Every command measures the ceilings first: fractions are of those of the same run.
// tests/gpu/README.md says what each figure means.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>

#include "tests/bench/gpu_bench_commands.h"

namespace shoal::bench {
namespace {

struct Arguments {
  std::string command;
  std::string scale = "16b";
  int device = 0;
  std::string json;
};

absl::StatusOr<Arguments> ParseArguments(std::span<char*> words) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (!word.starts_with("--")) {
      arguments.command = word;
      continue;
    }
    if (i + 1 == words.size()) {
      return absl::InvalidArgumentError(fmt::format("{} needs a value", word));
    }
    const std::string_view value = words[++i];
    if (word == "--scale") {
      arguments.scale = value;
    } else if (word == "--json") {
      arguments.json = value;
    } else if (word == "--device") {
      const char* const end = value.data() + value.size();
      const auto [rest, error] = std::from_chars(value.data(), end, arguments.device);
      if (error != std::errc() || rest != end || arguments.device < 0) {
        return absl::InvalidArgumentError(fmt::format("--device is '{}', not a number", value));
      }
    } else {
      return absl::InvalidArgumentError(fmt::format("there is no option {}", word));
    }
  }
  return arguments;
}

absl::Status Run(std::span<char*> words) {
  using Measure = void (*)(const Scale&, Gpu&, Report&);
  constexpr std::pair<std::string_view, Measure> kCommands[] = {{"ceilings", nullptr},
                                                                {"kernels", MeasureKernels},
                                                                {"model", MeasureModel},
                                                                {"tiles", MeasureTiles}};
  ASSIGN_OR_RETURN(const Arguments arguments, ParseArguments(words));
  ASSIGN_OR_RETURN(const Scale scale, ScaleByName(arguments.scale));
  const auto* command =
      std::ranges::find(kCommands, arguments.command, &std::pair<std::string_view, Measure>::first);
  if (command == std::end(kCommands)) {
    return absl::InvalidArgumentError(
        fmt::format("there is no command \"{}\", expected ceilings, kernels, model or tiles",
                    arguments.command));
  }
  Report report(arguments.command, arguments.scale, arguments.json);
  {
    ASSIGN_OR_RETURN(const auto gpu, Gpu::Create(arguments.device, scale.timing));
    report.SetMachine(gpu->machine());
    MeasureCeilings(scale, *gpu, report);
  }
  if (command->second != nullptr) {
    ASSIGN_OR_RETURN(const auto gpu, Gpu::Create(arguments.device, scale.timing));
    command->second(scale, *gpu, report);
  }
  return report.Save();
}

}  // namespace
}  // namespace shoal::bench

int main(int argc, char** argv) {
  const absl::Status status = shoal::bench::Run(std::span(argv + 1, argv + argc));
  if (status.ok()) return 0;
  fmt::print(stderr, "gpu_bench: {}\n", std::string(status.message()));
  return 1;
}
