#include "engine/model/random_weights.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "engine/model/deepseek_moe.h"
#include "kernels/comm/local_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

constexpr int kTokens = 512;

/// A model with weights on one rank of the CPU.
struct Model {
  ModelConfig config;
  Backend backend = MakeCpuBackend({.num_threads = 2}).value();
  std::unique_ptr<DeepseekMoe> moe;
  std::vector<Tensor> kv;

  Model(const ModelConfig& model, const RandomWeightsOptions& options) : config(model) {
    const auto placement = ExpertPlacement::Create(config, 1, 0).value();
    ModelWeights weights =
        MakeRandomWeights(config, options, DType::kFloat32, placement, backend, nullptr).value();
    moe = DeepseekMoe::Create(config, std::move(weights), DType::kFloat32,
                              {.max_tokens = kTokens,
                               .max_positions = kTokens,
                               .max_logits_rows = kTokens,
                               .vocab_limit = config.vocab_size},
                              &backend)
              .value();
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      kv.push_back(Allocate(DType::kFloat32,
                            {kTokens / 16, 2, config.num_key_value_heads, 16, config.head_dim()}));
    }
  }

  Tensor Allocate(DType dtype, std::initializer_list<int64_t> shape) {
    return backend.device->Allocate(dtype, shape).value();
  }

  /// The logits of a sequence of different tokens.
  std::vector<float> Logits() {
    const Tensor ids = Allocate(DType::kInt32, {kTokens});
    const Tensor positions = Allocate(DType::kInt32, {kTokens});
    const Tensor blocks = Allocate(DType::kInt32, {1, kTokens / 16});
    const Tensor starts = Allocate(DType::kInt32, {2});
    for (int32_t i = 0; i < kTokens; ++i) {
      ids.as<int32_t>()[i] = static_cast<int32_t>(7 * i % config.vocab_size);
      positions.as<int32_t>()[i] = i;
    }
    for (int32_t i = 0; i < kTokens / 16; ++i) blocks.as<int32_t>()[i] = i;
    starts.as<int32_t>()[1] = kTokens;
    const ForwardBatch batch = {.token_ids = ids,
                                .attention = {.positions = positions,
                                              .slot_mapping = positions,
                                              .cu_seqlens = starts,
                                              .block_tables = blocks,
                                              .max_query_len = kTokens,
                                              .max_context_len = kTokens},
                                .num_tokens = {}};
    moe->Forward(batch, kv);
    const Tensor logits = moe->Logits(positions);
    return {logits.as<float>(), logits.as<float>() + logits.num_elements()};
  }
};

double Deviation(const std::vector<float>& values) {
  double squares = 0;
  for (float value : values) squares += double{value} * value;
  return std::sqrt(squares / static_cast<double>(values.size()));
}

TEST(MakeRandomWeights, GivesLogitsAsSpreadAsATrainedModels) {
  Model model(PresetModelConfig("tiny").value(), {});
  const std::vector<float> logits = model.Logits();
  EXPECT_TRUE(std::ranges::all_of(logits, [](float value) { return std::isfinite(value); }));
  EXPECT_NEAR(Deviation(logits), 3, 0.3);
}

TEST(MakeRandomWeights, DependsOnTheSeed) {
  Model first(SmallModel(), {.seed = 1}), again(SmallModel(), {.seed = 1}),
      other(SmallModel(), {.seed = 2});
  const std::vector<float> logits = first.Logits();
  EXPECT_EQ(logits, again.Logits());
  EXPECT_NE(logits, other.Logits());
}

/// The share of the busiest expert, in even shares, of random tokens in a layer of 16B's gate.
double BusiestExpert(float routing_skew) {
  constexpr int64_t kHidden = 64, kExperts = 64, kTopK = 6, kRows = 4096;
  const ModelConfig config = {.vocab_size = 8,
                              .hidden_size = kHidden,
                              .moe_intermediate_size = 8,
                              .num_hidden_layers = 1,
                              .num_attention_heads = 1,
                              .num_key_value_heads = 1,
                              .n_routed_experts = kExperts,
                              .num_experts_per_tok = kTopK};
  Backend backend = MakeCpuBackend({.num_threads = 2}).value();
  const auto placement = ExpertPlacement::Create(config, 1, 0).value();
  const ModelWeights weights = MakeRandomWeights(config, {.routing_skew = routing_skew},
                                                 DType::kFloat32, placement, backend, nullptr)
                                   .value();
  const auto allocate = [&](DType dtype, std::initializer_list<int64_t> shape) {
    return backend.device->Allocate(dtype, shape).value();
  };
  const Tensor x = allocate(DType::kFloat32, {kRows, kHidden});
  backend.ops->FillNormal(x, 9, 1);
  const Routing routing = {.expert_ids = allocate(DType::kInt32, {kRows, kTopK}),
                           .weights = allocate(DType::kFloat32, {kRows, kTopK}),
                           .num_tokens = {}};
  const LayerWeights& layer = weights.layers[0];
  backend.ops->AddRmsNormRoute({}, x, layer.post_attention_norm, layer.router,
                               allocate(DType::kFloat32, {kRows, kHidden}), routing);
  std::map<int32_t, int> counts;
  for (int64_t i = 0; i < kRows * kTopK; ++i) ++counts[routing.expert_ids.as<int32_t>()[i]];
  const int most =
      std::ranges::max_element(counts, {}, [](const auto& e) { return e.second; })->second;
  return static_cast<double>(most) * kExperts / (kRows * kTopK);
}

TEST(MakeRandomWeights, SkewsTheRouting) {
  EXPECT_LT(BusiestExpert(0), 1.7);
  EXPECT_GT(BusiestExpert(0.3f), 1.9);
  EXPECT_LT(BusiestExpert(0.3f), 4);
}

TEST(MakeRandomWeights, GivesEachRankItsExpertsOfTheSameModel) {
  constexpr int kRanks = 2;
  const ModelConfig config = SmallModel();
  const auto make = [&](Backend& backend) {
    const auto placement = ExpertPlacement::Create(config, backend.communicator->size(), 0).value();
    return MakeRandomWeights(config, {}, DType::kFloat32, placement, backend, nullptr).value();
  };
  Backend alone = MakeCpuBackend({.num_threads = 1}).value();
  const FfnWeights all = make(alone).layers[1].experts.weights;
  const int64_t down = all.hidden_size * all.width;  // elements
  auto communicators = MakeLocalGroup(kRanks);
  for (int rank = 0; rank < kRanks; ++rank) {
    Backend backend =
        MakeCpuBackend({.num_threads = 1}, std::move(communicators[static_cast<size_t>(rank)]))
            .value();
    const LayerWeights layer = make(backend).layers[1];
    const int64_t num_routed = config.n_routed_experts / kRanks;
    EXPECT_EQ(layer.experts.weights.num_experts, num_routed + config.n_shared_experts);
    const auto* actual = static_cast<const float*>(layer.experts.weights.down);
    const auto* expected = static_cast<const float*>(all.down);
    EXPECT_EQ(0, std::memcmp(actual, expected + rank * num_routed * down,
                             static_cast<size_t>(num_routed * down) * sizeof(float)));
    EXPECT_EQ(0, std::memcmp(actual + num_routed * down, expected + config.n_routed_experts * down,
                             static_cast<size_t>(down) * sizeof(float)));
  }
}

TEST(MakeRandomWeights, ReportsTheBytesOfTheRank) {
  Backend backend = MakeCpuBackend({.num_threads = 1}).value();
  const ModelConfig config = SmallModel();
  const auto placement = ExpertPlacement::Create(config, 1, 0).value();
  int64_t last = 0, total = 0;
  const auto progress = [&](int64_t done_bytes, int64_t total_bytes) {
    EXPECT_GT(done_bytes, last);
    last = done_bytes;
    total = total_bytes;
  };
  ASSERT_TRUE(MakeRandomWeights(config, {}, DType::kBFloat16, placement, backend, progress).ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, config.num_parameters() * 2);
}

TEST(MakeRandomWeights, SaysWhatTheDeviceLacks) {
  Backend backend = MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = 1 << 16}).value();
  const ModelConfig config = SmallModel();
  const auto placement = ExpertPlacement::Create(config, 1, 0).value();
  const auto weights = MakeRandomWeights(config, {}, DType::kFloat32, placement, backend, nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(weights.status())) << weights.status();
}

}  // namespace
}  // namespace shoal
