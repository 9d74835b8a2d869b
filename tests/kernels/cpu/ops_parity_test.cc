#include "tests/kernels/ops_parity.h"

#include "kernels/comm/single_rank.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"

namespace shoal {
namespace {

BackendCase Case(const char* name, Isa isa, int num_threads) {
  const auto make = [=]() -> absl::StatusOr<Backend> {
    if (isa > BestIsa()) return absl::UnimplementedError("this machine lacks the instructions");
    const auto pool = std::make_shared<ThreadPool>(num_threads);
    const auto used = std::make_shared<UsedBytes>(0);
    return Backend{.device = std::make_unique<CpuDevice>(pool, int64_t{1} << 32, used),
                   .ops = std::make_unique<CpuOps>(pool, isa, used),
                   .communicator = std::make_unique<SingleRank>()};
  };
  return {.name = name, .make = make, .dtypes = {DType::kFloat32, DType::kBFloat16}};
}

const auto kCases =
    testing::Values(Case("Baseline", Isa::kBaseline, 1), Case("Avx2", Isa::kAvx2, 2),
                    Case("Avx512", Isa::kAvx512, 1), Case("Avx512Threads3", Isa::kAvx512, 3));

const auto kName = [](const testing::TestParamInfo<BackendCase>& info) { return info.param.name; };

INSTANTIATE_TEST_SUITE_P(Cpu, DeviceParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cpu, OpsParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cpu, NormParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cpu, FfnParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cpu, AttentionParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cpu, SamplingParity, kCases, kName);
INSTANTIATE_TEST_SUITE_P(Cpu, SamplingEditsParity, kCases, kName);

}  // namespace
}  // namespace shoal
