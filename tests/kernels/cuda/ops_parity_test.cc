#include "tests/kernels/ops_parity.h"

#include "kernels/cuda/cuda_backend.h"

#ifdef SHOAL_EMULATION_SEEDS
#include "tests/cuda_emulation/emulator.h"
#endif

namespace shoal {
namespace {

BackendCase Case(std::string name, std::function<void()> prepare) {
  const auto make = [prepare = std::move(prepare)]() -> absl::StatusOr<Backend> {
    prepare();
    absl::StatusOr<Backend> backend = cuda::MakeCudaBackend({});
    if (!absl::IsUnavailable(backend.status())) return backend;
    return absl::UnimplementedError(backend.status().message());
  };
  return {.name = std::move(name),
          .make = make,
          .dtypes = {DType::kBFloat16},
          .feature_alignment = 8,
          .head_dim_alignment = 16,
          .num_draws = 20000};
}

/// The device; or the emulator, once for each schedule that it shall try.
std::vector<BackendCase> Cases() {
  std::vector<BackendCase> cases;
#ifdef SHOAL_EMULATION_SEEDS
  for (uint64_t seed = 1; seed <= SHOAL_EMULATION_SEEDS; ++seed) {
    cases.push_back(Case(fmt::format("Seed{}", seed), [seed] { cuda_emulation::Seed(seed); }));
    cases.back().num_draws = 1000;
  }
#else
  cases.push_back(Case("Device", [] {}));
#endif
  return cases;
}

const auto kCases = testing::ValuesIn(Cases());
const auto kName = [](const testing::TestParamInfo<BackendCase>& info) { return info.param.name; };

INSTANTIATE_TEST_SUITE_P(Cuda, DeviceParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cuda, OpsParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cuda, NormParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cuda, FfnParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cuda, AttentionParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cuda, SamplingParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cuda, SamplingEditsParity, kCases, kName);

}  // namespace
}  // namespace shoal
