#include <gmock/gmock.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/model/checkpoint_layout.h"
#include "engine/model/random_checkpoint.h"
#include "engine/model/safetensors_writer.h"
#include "engine/model/weights.h"
#include "kernels/comm/local_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

Backend CpuRank(int rank, int size) {
  absl::StatusOr<Backend> backend =
      MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = 256 << 20},
                     std::move(MakeLocalGroup(size)[static_cast<size_t>(rank)]));
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

std::unique_ptr<Checkpoint> Written(const ModelConfig& config, const TempDirectory& directory) {
  const absl::Status status =
      WriteRandomCheckpoint(config, 5, int64_t{1} << 40, directory.path(), {});
  EXPECT_TRUE(status.ok()) << status;
  return *Checkpoint::Open(directory.path());
}

ExpertPlacement Placed(const ModelConfig& config, const Backend& backend, int num_redundant = 0) {
  return *ExpertPlacement::Create(config, backend.communicator->size(), num_redundant);
}

ModelWeights Loaded(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend,
                    int num_redundant = 0) {
  absl::StatusOr<ModelWeights> weights = LoadModelWeights(
      config, checkpoint, DType::kFloat32, Placed(config, backend, num_redundant), backend, {});
  EXPECT_TRUE(weights.ok()) << weights.status();
  return *std::move(weights);
}

ModelConfig TinyFloat32() {
  ModelConfig config = *PresetModelConfig("tiny");
  config.torch_dtype = DType::kFloat32;
  return config;
}

/// A device tensor [shape] of this backend, filled with these values.
template <typename T>
Tensor Filled(Backend& backend, DType dtype, std::initializer_list<int64_t> shape,
              const std::vector<T>& values) {
  const Tensor tensor = *backend.device->Allocate(dtype, shape);
  backend.device->CopyFromHost(values.data(), tensor);
  EXPECT_TRUE(backend.device->Synchronize().ok());
  return tensor;
}

std::vector<float> OnHost(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  backend.device->CopyToHost(tensor, values.data());
  EXPECT_TRUE(backend.device->Synchronize().ok());
  return values;
}

std::vector<float> InCheckpoint(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor& tensor = checkpoint.tensors().at(name);
  const auto* data = tensor.as<const float>();
  return {data, data + tensor.num_elements()};
}

/// Two tokens, [2, 128].
Tensor Hidden(Backend& backend) {
  std::vector<float> hidden(2 * 128);
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = 0.01f * static_cast<float>(i % 37);
  return Filled(backend, DType::kFloat32, {2, 128}, hidden);
}

/// Adds to `rows` what this rank's experts of layer 1 make of two tokens whose experts are these
/// 18 places.
void RunExperts(Backend& backend, const LocalExperts& experts, const std::vector<int32_t>& places,
                std::vector<float>& rows) {
  std::vector<int32_t> ids = places;
  ids.insert(ids.end(), places.begin(), places.end());
  const Tensor out = Filled(backend, DType::kFloat32, {2, 18, 128}, rows);
  backend.ops->ExpertFfn(Hidden(backend), Filled(backend, DType::kInt32, {2, 18}, ids), experts,
                         out);
  rows = OnHost(backend, out);
}

TEST(LoadModelWeights, GivesEachRankItsExperts) {
  const TempDirectory directory;
  const ModelConfig config = TinyFloat32();
  const auto checkpoint = Written(config, directory);
  Backend whole = CpuRank(0, 1);
  std::vector<float> expected(2 * 18 * 128);
  std::vector<int32_t> all(18);
  std::iota(all.begin(), all.end(), 0);
  RunExperts(whole, Loaded(config, *checkpoint, whole).layers[1].experts, all, expected);
  EXPECT_THAT(expected, testing::Each(testing::Ne(0.0f)));

  constexpr int kNumRanks = 3;
  for (const int num_redundant : {0, 5}) {
    for (int home = 0; home < kNumRanks; ++home) {
      std::vector<float> rows(2 * 18 * 128);
      for (int rank = 0; rank < kNumRanks; ++rank) {
        Backend backend = CpuRank(rank, kNumRanks);
        const ModelWeights weights = Loaded(config, *checkpoint, backend, num_redundant);
        const auto places = Placed(config, backend, num_redundant).PlacesFor(home);
        RunExperts(backend, weights.layers[1].experts, places, rows);
      }
      EXPECT_EQ(rows, expected) << num_redundant << " redundant, tokens of rank " << home;
    }
  }
}

/// The rows of both shared experts add up to what the checkpoint's network for both makes.
TEST(LoadModelWeights, CutsTheSharedNetworkIntoExperts) {
  const TempDirectory directory;
  const ModelConfig config = TinyFloat32();
  ASSERT_EQ(config.n_shared_experts, 2);
  const auto checkpoint = Written(config, directory);
  const auto matrix = [&](const char* name) {
    return checkpoint->tensors().at(
        fmt::format("model.layers.1.mlp.shared_experts.{}_proj.weight", name));
  };
  Backend backend = CpuRank(0, 1);
  const HostFfn network = {.gate = matrix("gate"), .up = matrix("up"), .down = matrix("down")};
  const FfnWeights whole = *backend.device->LoadFfn({&network, 1}, DType::kFloat32);
  const Tensor out = *backend.device->Allocate(DType::kFloat32, {2, 128});
  backend.ops->DenseFfn(Hidden(backend), whole, out);
  const std::vector<float> expected = OnHost(backend, out);

  const LocalExperts experts = Loaded(config, *checkpoint, backend).layers[1].experts;
  ASSERT_EQ(experts.weights.num_experts, 18);
  std::vector<int32_t> places(18, -1);
  places[16] = 16;
  places[17] = 17;
  std::vector<float> rows(2 * 18 * 128);
  RunExperts(backend, experts, places, rows);
  for (size_t i = 0; i < expected.size(); ++i) {
    const size_t first = (i / 128 * 18 + 16) * 128 + i % 128;
    EXPECT_NE(rows[first], 0);
    EXPECT_NEAR(rows[first] + rows[first + 128], expected[i], 1e-6 + 1e-5 * std::abs(expected[i]));
  }
}

TEST(LoadModelWeights, KnowsThePlacesThatServeItsRank) {
  const TempDirectory directory;
  const ModelConfig config = TinyFloat32();
  const auto checkpoint = Written(config, directory);
  Backend whole = CpuRank(0, 1);
  EXPECT_TRUE(Loaded(config, *checkpoint, whole).expert_places.empty());
  Backend backend = CpuRank(2, 3);
  const ModelWeights weights = Loaded(config, *checkpoint, backend, 5);
  const ExpertPlacement placement = Placed(config, backend, 5);
  std::vector<int32_t> places(18);
  backend.device->CopyToHost(weights.expert_places, places.data());
  EXPECT_TRUE(backend.device->Synchronize().ok());
  EXPECT_EQ(places, placement.PlacesFor(2));
  EXPECT_EQ(weights.experts_per_rank, placement.experts_per_rank());
}

TEST(LoadModelWeights, PutsBiasesOfQueryKeyAndValueOneAfterTheOther) {
  const TempDirectory directory;
  ModelConfig config = TinyFloat32();
  config.attention_bias = true;
  config.num_key_value_heads = 2;
  const auto checkpoint = Written(config, directory);
  Backend backend = CpuRank(0, 1);
  const ModelWeights weights = Loaded(config, *checkpoint, backend);
  std::vector<float> expected;
  for (const char* name : {"q", "k", "v"}) {
    const auto part =
        InCheckpoint(*checkpoint, fmt::format("model.layers.2.self_attn.{}_proj.bias", name));
    expected.insert(expected.end(), part.begin(), part.end());
  }
  EXPECT_EQ(OnHost(backend, weights.layers[2].qkv_bias), expected);
  EXPECT_EQ(weights.layers[2].qkv.out_features, 128 + 2 * 64);
  EXPECT_EQ(OnHost(backend, weights.layers[2].o_bias),
            InCheckpoint(*checkpoint, "model.layers.2.self_attn.o_proj.bias"));
}

TEST(LoadModelWeights, UsesTheEmbeddingAsHeadWhenTied) {
  const TempDirectory directory;
  ModelConfig config = TinyFloat32();
  config.tie_word_embeddings = true;
  const auto checkpoint = Written(config, directory);
  Backend backend = CpuRank(0, 1);
  const ModelWeights weights = Loaded(config, *checkpoint, backend);
  EXPECT_EQ(weights.lm_head.data, weights.embedding.data);
  config.tie_word_embeddings = false;
  EXPECT_EQ(
      LoadModelWeights(config, *checkpoint, DType::kFloat32, Placed(config, backend), backend, {})
          .status()
          .code(),
      absl::StatusCode::kNotFound);
}

TEST(LoadModelWeights, LeavesOutWhatTheLayersDoNotHave) {
  const TempDirectory directory;
  ModelConfig config = TinyFloat32();
  config.n_shared_experts = 0;
  config.moe_layer_freq = 2;
  const auto checkpoint = Written(config, directory);
  Backend backend = CpuRank(0, 1);
  const ModelWeights weights = Loaded(config, *checkpoint, backend);
  ASSERT_EQ(weights.layers.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(i)];
    EXPECT_EQ(layer.router.weight.empty(), i != 2) << i;
    EXPECT_EQ(layer.router.num_shared, 0) << i;
    EXPECT_EQ(layer.experts.weights.empty(), i != 2) << i;
    EXPECT_EQ(layer.dense.empty(), i == 2) << i;
    EXPECT_TRUE(layer.qkv_bias.empty()) << i;
  }
}

TEST(LoadModelWeights, IgnoresRotaryFrequenciesOfOldCheckpoints) {
  const TempDirectory directory;
  ModelConfig config = TinyFloat32();
  config.num_hidden_layers = 1;
  config.vocab_size = 16;
  std::vector<TensorInfo> infos;
  std::vector<TensorSpec> layout = CheckpointLayout(config);
  layout.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {16}});
  int64_t end = 0;
  for (const TensorSpec& spec : layout) {
    const int64_t begin = end;
    end += 4 * std::accumulate(spec.shape.begin(), spec.shape.end(), int64_t{1}, std::multiplies());
    infos.push_back({spec.name, DType::kFloat32, spec.shape, begin, end});
  }
  auto writer = SafetensorsWriter::Create(directory.path() + "/model.safetensors", infos);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Append(std::vector<std::byte>(static_cast<size_t>(end))).ok());
  ASSERT_TRUE(writer->Close().ok());
  Backend backend = CpuRank(0, 1);
  Loaded(config, **Checkpoint::Open(directory.path()), backend);
}

TEST(LoadModelWeights, ReportsTheBytesOfItsRankUpToTheEnd) {
  const TempDirectory directory;
  const ModelConfig config = TinyFloat32();
  const auto checkpoint = Written(config, directory);
  Backend backend = CpuRank(1, 2);
  int64_t last = 0;
  int64_t total = 0;
  const auto progress = [&](int64_t done_bytes, int64_t total_bytes) {
    EXPECT_GT(done_bytes, last);
    last = done_bytes;
    total = total_bytes;
  };
  ASSERT_TRUE(LoadModelWeights(config, *checkpoint, DType::kBFloat16, Placed(config, backend),
                               backend, progress)
                  .status()
                  .ok());
  const int64_t expert_bytes = 4 * 3 * 128 * 96;
  EXPECT_EQ(total, 4 * config.num_parameters() - 3 * 8 * expert_bytes);
  EXPECT_EQ(last, total);
}

TEST(LoadModelWeights, SaysWhenTheDeviceIsTooSmall) {
  const TempDirectory directory;
  const ModelConfig config = TinyFloat32();
  const auto checkpoint = Written(config, directory);
  absl::StatusOr<Backend> backend =
      MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = 1 << 20});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ(
      LoadModelWeights(config, *checkpoint, DType::kFloat32, Placed(config, *backend), *backend, {})
          .status()
          .code(),
      absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace shoal
