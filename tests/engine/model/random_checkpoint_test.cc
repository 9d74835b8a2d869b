#include "engine/model/random_checkpoint.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "engine/model/checkpoint.h"
#include "engine/model/checkpoint_layout.h"
#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr int64_t kOneShard = int64_t{1} << 40;
constexpr char kExpert[] = "model.layers.2.mlp.experts.5.up_proj.weight";

std::unique_ptr<Checkpoint> Written(const ModelConfig& config, uint64_t seed, int64_t max_bytes,
                                    const TempDirectory& directory) {
  const absl::Status status = WriteRandomCheckpoint(config, seed, max_bytes, directory.path(), {});
  EXPECT_TRUE(status.ok()) << status;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::string Bytes(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor& tensor = checkpoint.tensors().at(name);
  return {tensor.as<const char>(), static_cast<size_t>(tensor.size_bytes())};
}

/// Element i as a float.
float Element(const Tensor& tensor, int64_t i) {
  if (tensor.dtype == DType::kFloat32) return tensor.as<const float>()[i];
  if (tensor.dtype == DType::kBFloat16) return static_cast<float>(tensor.as<const BFloat16>()[i]);
  const uint16_t bits = tensor.as<const uint16_t>()[i];
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

struct Moments {
  double mean = 0;
  double deviation = 0;
  double kurtosis = 0;
};

Moments MomentsOf(const Tensor& tensor) {
  const int64_t count = tensor.num_elements();
  Moments moments;
  for (int64_t i = 0; i < count; ++i)
    moments.mean += Element(tensor, i) / static_cast<double>(count);
  double fourth = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double square = std::pow(Element(tensor, i) - moments.mean, 2);
    moments.deviation += square / static_cast<double>(count);
    fourth += square * square / static_cast<double>(count);
  }
  moments.kurtosis = fourth / (moments.deviation * moments.deviation);
  moments.deviation = std::sqrt(moments.deviation);
  return moments;
}

TEST(RandomCheckpoint, HoldsExactlyTheLayoutOfEveryVariant) {
  const TempDirectory directory;
  const std::function<void(ModelConfig&)> variants[] = {
      [](ModelConfig&) {},
      [](ModelConfig& c) { c.n_routed_experts = c.n_shared_experts = c.num_experts_per_tok = 0; },
      [](ModelConfig& c) { c.n_shared_experts = 0; },
      [](ModelConfig& c) { c.num_key_value_heads = 2, c.attention_bias = true; },
      [](ModelConfig& c) { c.moe_layer_freq = 2, c.tie_word_embeddings = true; },
  };
  for (const auto& change : variants) {
    ModelConfig config = *PresetModelConfig("tiny");
    change(config);
    const auto checkpoint = Written(config, 1, kOneShard, directory);
    EXPECT_EQ(*ReadModelConfig(directory.path()), config);
    const std::vector<TensorSpec> layout = CheckpointLayout(config);
    EXPECT_EQ(checkpoint->tensors().size(), layout.size());
    for (const TensorSpec& spec : layout) {
      const auto tensor = checkpoint->Get(spec.name, spec.shape);
      ASSERT_TRUE(tensor.ok()) << tensor.status();
      EXPECT_EQ(tensor->dtype, DType::kBFloat16);
    }
  }
}

TEST(RandomCheckpoint, NamesTensorsAsThePublishedModelDoes) {
  const TempDirectory directory;
  const auto checkpoint = Written(*PresetModelConfig("tiny"), 1, kOneShard, directory);
  const std::pair<const char*, std::vector<int64_t>> tensors[] = {
      {"model.embed_tokens.weight", {2048, 128}},
      {"model.layers.0.input_layernorm.weight", {128}},
      {"model.layers.0.post_attention_layernorm.weight", {128}},
      {"model.layers.3.self_attn.q_proj.weight", {128, 128}},
      {"model.layers.3.self_attn.o_proj.weight", {128, 128}},
      {"model.layers.0.mlp.gate_proj.weight", {704, 128}},
      {"model.layers.0.mlp.down_proj.weight", {128, 704}},
      {"model.layers.1.mlp.gate.weight", {16, 128}},
      {"model.layers.1.mlp.experts.15.up_proj.weight", {96, 128}},
      {"model.layers.1.mlp.experts.15.down_proj.weight", {128, 96}},
      {"model.layers.3.mlp.shared_experts.gate_proj.weight", {192, 128}},
      {"model.layers.3.mlp.shared_experts.down_proj.weight", {128, 192}},
      {"model.norm.weight", {128}},
      {"lm_head.weight", {2048, 128}},
  };
  for (const auto& [name, shape] : tensors) {
    EXPECT_TRUE(checkpoint->Get(name, shape).ok()) << checkpoint->Get(name, shape).status();
  }
}

TEST(RandomCheckpoint, DependsOnNameAndSeedOnly) {
  const TempDirectory directory;
  ModelConfig config = *PresetModelConfig("tiny");
  const std::string expected = Bytes(*Written(config, 7, kOneShard, directory), kExpert);
  EXPECT_NE(Bytes(*Written(config, 8, kOneShard, directory), kExpert), expected);
  config.n_shared_experts = 0;
  config.num_hidden_layers = 3;
  const auto checkpoint = Written(config, 7, 100'000, directory);
  EXPECT_EQ(Bytes(*checkpoint, kExpert), expected);
  EXPECT_NE(Bytes(*checkpoint, "model.layers.2.mlp.experts.4.up_proj.weight"), expected);
}

TEST(RandomCheckpoint, IsTheSameOnEveryMachine) {
  const TempDirectory directory;
  const auto checkpoint = Written(*PresetModelConfig("tiny"), 0, kOneShard, directory);
  uint32_t hash = 0;
  for (const char c : Bytes(*checkpoint, kExpert)) {
    hash = hash * 31 + static_cast<unsigned char>(c);
  }
  EXPECT_EQ(hash, 1722033597u);
}

TEST(RandomCheckpoint, IsNormalWithTheConfiguredDeviationInEveryDtype) {
  const TempDirectory directory;
  for (DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    ModelConfig config = *PresetModelConfig("tiny");
    config.torch_dtype = dtype;
    config.initializer_range = 0.02;
    const auto checkpoint = Written(config, 3, kOneShard, directory);
    const Tensor& embedding = checkpoint->tensors().at("model.embed_tokens.weight");
    EXPECT_EQ(embedding.dtype, dtype);
    // 2^18 values: standard errors are 4e-5 of the mean, 0.14 % of the deviation, 0.01 of kurtosis.
    const Moments moments = MomentsOf(embedding);
    EXPECT_NEAR(moments.mean, 0, 2e-4);
    EXPECT_NEAR(moments.deviation, 0.02, 2e-4);
    EXPECT_NEAR(moments.kurtosis, 3, 0.05);
    const Moments norm = MomentsOf(checkpoint->tensors().at("model.norm.weight"));
    EXPECT_NEAR(norm.mean, 1, 0.01);
    EXPECT_NEAR(norm.deviation, 0.02, 0.01);
  }
}

TEST(RandomCheckpoint, WritesTheSameValuesInEveryDtypeUpToRounding) {
  const TempDirectory directory;
  ModelConfig config = *PresetModelConfig("tiny");
  config.torch_dtype = DType::kFloat32;
  const std::string bytes = Bytes(*Written(config, 3, kOneShard, directory), kExpert);
  const Tensor exact(const_cast<char*>(bytes.data()), DType::kFloat32,
                     {static_cast<int64_t>(bytes.size()) / 4});
  for (const auto& [dtype, step] :
       {std::pair(DType::kBFloat16, 0x1p-8f), std::pair(DType::kFloat16, 0x1p-11f)}) {
    config.torch_dtype = dtype;
    const auto checkpoint = Written(config, 3, kOneShard, directory);
    const Tensor& rounded = checkpoint->tensors().at(kExpert);
    for (int64_t i = 0; i < exact.num_elements(); ++i) {
      const float value = Element(exact, i);
      ASSERT_NEAR(Element(rounded, i), value, std::max(std::fabs(value) * step, 0x1p-25f)) << i;
    }
  }
}

TEST(RandomCheckpoint, DividesIntoShardsWithAnIndex) {
  const TempDirectory directory;
  const ModelConfig config = *PresetModelConfig("tiny");
  constexpr int64_t kMaxBytes = 1'000'000;
  const auto checkpoint = Written(config, 1, kMaxBytes, directory);
  EXPECT_FALSE(directory.Has("model.safetensors"));
  const json index = json::parse(directory.Read("model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], config.num_parameters() * 2);
  EXPECT_EQ(index["weight_map"].size(), CheckpointLayout(config).size());
  EXPECT_EQ(index["weight_map"]["model.embed_tokens.weight"],
            index["weight_map"]["model.layers.0.input_layernorm.weight"]);
  const std::string last = index["weight_map"]["lm_head.weight"];
  const int num_shards = std::stoi(last.substr(6, 5));
  EXPECT_GE(num_shards, config.num_parameters() * 2 / kMaxBytes);
  for (int i = 1; i <= num_shards; ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i, num_shards);
    ASSERT_TRUE(directory.Has(file)) << file;
    EXPECT_LT(directory.Read(file).size(), kMaxBytes + 20'000u) << file;
  }
}

TEST(RandomCheckpoint, ReplacesShardsByASingleFile) {
  const TempDirectory directory;
  const ModelConfig config = *PresetModelConfig("tiny");
  Written(config, 1, 1'000'000, directory);
  const std::string sharded = Bytes(*Written(config, 1, 1'000'000, directory), kExpert);
  EXPECT_EQ(Bytes(*Written(config, 1, kOneShard, directory), kExpert), sharded);
  EXPECT_THAT(directory.Files(), testing::UnorderedElementsAre(
                                     "config.json", "generation_config.json", "model.safetensors"));
}

TEST(RandomCheckpoint, GivesTensorsAboveTheLimitAShardOfTheirOwn) {
  const TempDirectory directory;
  const ModelConfig config = *PresetModelConfig("tiny");
  const auto checkpoint = Written(config, 1, 1, directory);
  EXPECT_EQ(checkpoint->tensors().size(), CheckpointLayout(config).size());
}

TEST(RandomCheckpoint, WritesGenerationConfig) {
  const TempDirectory directory;
  const ModelConfig config = *PresetModelConfig("tiny");
  Written(config, 1, kOneShard, directory);
  const json generation = json::parse(directory.Read("generation_config.json"));
  EXPECT_EQ(generation["bos_token_id"], config.bos_token_id);
  EXPECT_EQ(generation["eos_token_id"], config.eos_token_id);
}

TEST(RandomCheckpoint, ReportsProgressUpToTheEnd) {
  const TempDirectory directory;
  const ModelConfig config = *PresetModelConfig("tiny");
  int64_t last = 0;
  int64_t total = 0;
  const auto progress = [&](int64_t done_bytes, int64_t total_bytes) {
    EXPECT_GT(done_bytes, last);
    last = done_bytes;
    total = total_bytes;
  };
  ASSERT_TRUE(WriteRandomCheckpoint(config, 1, kOneShard, directory.path(), progress).ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, config.num_parameters() * 2);
}

TEST(RandomCheckpoint, NamesAPathThatCannotBeWritten) {
  const TempDirectory directory;
  directory.Write("file", "");
  const absl::Status status = WriteRandomCheckpoint(*PresetModelConfig("tiny"), 1, kOneShard,
                                                    directory.path() + "/file", {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(directory.path() + "/file"));
}

}  // namespace
}  // namespace shoal
