#include "engine/model/roofline.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

ModelConfig Model16b() { return PresetModelConfig("16b").value(); }

TEST(Roofline, ExpectsTheExpertsThatUniformRoutingHits) {
  constexpr double kMoeLayers = 27;
  EXPECT_NEAR(ExpectedExperts(Model16b(), 1) / kMoeLayers, 6, 1e-9);
  EXPECT_NEAR(ExpectedExperts(Model16b(), 8) / kMoeLayers, 34.88, 5e-3);
  EXPECT_NEAR(ExpectedExperts(Model16b(), 64) / kMoeLayers, 63.88, 5e-3);
  ModelConfig dense = Model16b();
  dense.n_routed_experts = 0;
  EXPECT_EQ(ExpectedExperts(dense, 8), 0);
}

/// The figures of 16B that follow from its published shape: 2.435 GB that every step reads, 17.30
/// MB per expert, 224 KiB per cached token.
TEST(Roofline, CountsTheBytesOf16B) {
  const ModelConfig model = Model16b();
  const auto bytes = [&](const ForwardWork& work) {
    return ForwardBytes(model, DType::kBFloat16, work);
  };
  EXPECT_NEAR(bytes({.num_tokens = 1, .num_logits_rows = 1}), 2435.0e6, 1e6);
  EXPECT_NEAR(bytes({.num_tokens = 1}), 2435.0e6 - 419.4e6, 1e6);
  EXPECT_NEAR(bytes(DecodeWork(model, 1, 0)), 5.24e9, 5e6);
  EXPECT_NEAR(bytes(DecodeWork(model, 64, 0)), 32.28e9, 5e6);
  EXPECT_EQ(bytes({.num_cached_tokens = 10}) - bytes({.num_cached_tokens = 9}), 229376);
  EXPECT_EQ(bytes({.num_experts = 2}) - bytes({.num_experts = 1}), 17301504);
  EXPECT_EQ(ForwardBytes(model, DType::kFloat32, {.num_tokens = 1}), 2 * bytes({.num_tokens = 1}));
}

TEST(Roofline, CountsTheProductsOf16B) {
  const ModelConfig model = Model16b();
  EXPECT_EQ(ForwardFlops(model, {.num_tokens = 1, .num_logits_rows = 1}), 2.0 * 2618818560);
  EXPECT_EQ(ForwardFlops(model, {.num_attended = 1}), 229376);
}

TEST(Roofline, KnowsADenseModel) {
  const ModelConfig dense = {.vocab_size = 10,
                             .hidden_size = 8,
                             .intermediate_size = 4,
                             .num_hidden_layers = 2,
                             .num_attention_heads = 2,
                             .num_key_value_heads = 1};
  // Of each layer: queries and output 8 x 8, key and value 4 x 8, network 3 x 4 x 8.
  constexpr double kLayer = 2 * 64 + 2 * 32 + 96;
  EXPECT_EQ(ForwardBytes(dense, DType::kFloat32, {.num_tokens = 1}), 2 * kLayer * 4);
  EXPECT_EQ(ForwardFlops(dense, {.num_tokens = 3}), 3 * 2 * kLayer * 2);
}

}  // namespace
}  // namespace shoal
