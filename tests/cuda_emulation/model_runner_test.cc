// The model runner on the CUDA backend under the emulator.
#include "engine/execution/rank_group.h"
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

/// What the kernels have no form for is an error at the start, before a weight is read.
TEST(CudaModel, RefusesWhatTheKernelsCannotCompute) {
  const auto refusal = [](DType dtype, const std::function<void(ModelConfig&)>& change) {
    WorkerConfig config = {.model_directory = "/not/there",
                           .make_backend = [](int, auto) { return cuda::MakeCudaBackend({}); },
                           .runner = SmallRunnerConfig()};
    config.runner.dtype = dtype;
    change(config.runner.model);
    const absl::Status status = RankGroup::Start(config, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(DType::kFloat32, [](ModelConfig&) {}),
            "dtype is float32, expected bfloat16 on a CUDA device");
  EXPECT_EQ(refusal(DType::kBFloat16, [](ModelConfig& model) { model.num_attention_heads = 8; }),
            "hidden_size / num_attention_heads is 8, expected a multiple of 16 on a CUDA device");
  EXPECT_EQ(refusal(DType::kBFloat16, [](ModelConfig& model) { model.intermediate_size = 100; }),
            "intermediate_size is 100, expected a multiple of 8 on a CUDA device");
  EXPECT_EQ(refusal(DType::kBFloat16, [](ModelConfig& model) { model.moe_intermediate_size = 30; }),
            "moe_intermediate_size is 30, expected a multiple of 8 on a CUDA device");
  EXPECT_EQ(refusal(DType::kBFloat16, [](ModelConfig& model) { model.n_routed_experts = 264; }),
            "n_routed_experts is 264, expected at most 256 on a CUDA device");
  EXPECT_EQ(refusal(DType::kBFloat16, [](ModelConfig& model) { model.n_shared_experts = 30; }),
            "num_experts_per_tok + n_shared_experts is 33, expected at most 32 on a CUDA device");
  EXPECT_EQ(refusal(DType::kBFloat16, [](ModelConfig& model) { model.vocab_size = 5'000'000; }),
            "vocab_size is 5000000, expected at most 4194304 on a CUDA device");
}

}  // namespace
}  // namespace shoal
