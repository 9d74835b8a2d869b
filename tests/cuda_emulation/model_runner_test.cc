// The model runner on the CUDA backend under the emulator.
#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_emulation/emulator.h"
#include "tests/engine/execution/model_runner_suite.h"

namespace shoal {
namespace {

std::vector<RunnerCase> Seeds() {
  std::vector<RunnerCase> cases;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    cases.push_back({.name = fmt::format("Seed{}", seed),
                     .make = [seed]() -> absl::StatusOr<Backend> {
                       cuda_emulation::Seed(seed);
                       return cuda::MakeCudaBackend({});
                     },
                     .working_memory_bytes = 4 << 20});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Cuda, ModelRunnerSuite, testing::ValuesIn(Seeds()),
                         [](const testing::TestParamInfo<RunnerCase>& info) {
                           return info.param.name;
                         });

}  // namespace
}  // namespace shoal
