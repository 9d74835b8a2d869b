#include "engine/model/weights.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "engine/model/random_checkpoint.h"
#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// A group of one, in which nothing has to travel.
class Alone final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void AllGather(const Tensor&, std::span<const int64_t>, const Tensor&) override {}
  void ReturnRows(const Tensor&, const Tensor&, int, std::span<const int64_t>,
                  const Tensor&) override {}
};

/// What loading says about a checkpoint of `written` when config.json says `config`. There is no
/// device: a checkpoint that does not fit must be refused before anything is loaded.
absl::Status LoadError(const ModelConfig& written, const ModelConfig& config) {
  const TempDirectory directory;
  const absl::Status status =
      WriteRandomCheckpoint(written, 1, int64_t{1} << 40, directory.path(), {});
  EXPECT_TRUE(status.ok()) << status;
  const auto checkpoint = Checkpoint::Open(directory.path());
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  Backend backend;
  backend.communicator = std::make_unique<Alone>();
  const auto placement = ExpertPlacement::Create(config, 1, 0);
  return LoadModelWeights(config, **checkpoint, DType::kFloat32, *placement, backend, {}).status();
}

TEST(LoadModelWeights, NamesTheTensorOfAnotherShape) {
  const ModelConfig config = *PresetModelConfig("tiny");
  ModelConfig wider = config;
  wider.moe_intermediate_size = 64;
  const absl::Status status = LoadError(config, wider);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.layers.1.mlp.experts.0.gate_proj.weight"),
                    HasSubstr("[96, 128]"), HasSubstr("[64, 128]")));
}

TEST(LoadModelWeights, NamesTheTensorThatIsMissing) {
  const ModelConfig config = *PresetModelConfig("tiny");
  ModelConfig deeper = config;
  deeper.num_hidden_layers = 5;
  const absl::Status status = LoadError(config, deeper);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.4.input_layernorm.weight"));
}

TEST(LoadModelWeights, RefusesTensorsThatTheConfigDoesNotKnow) {
  const ModelConfig config = *PresetModelConfig("tiny");
  ModelConfig biased = config;
  biased.attention_bias = true;
  const absl::Status status = LoadError(biased, config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.0.self_attn.k_proj.bias"));
}

}  // namespace
}  // namespace shoal
