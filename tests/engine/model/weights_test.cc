#include "engine/model/weights.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "engine/model/random_checkpoint.h"
#include "tests/engine/model/temp_directory.h"

namespace shoal {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(ExpertsOfRank, CoverEveryExpertOnceAndEvenly) {
  for (const auto [num_experts, num_ranks] :
       {std::pair(64, 8), std::pair(63, 4), std::pair(5, 5)}) {
    int next = 0;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const ExpertRange range = ExpertsOfRank(num_experts, rank, num_ranks);
      EXPECT_EQ(range.begin, next);
      EXPECT_GE(range.end - range.begin, num_experts / num_ranks);
      EXPECT_LE(range.end - range.begin, (num_experts + num_ranks - 1) / num_ranks);
      next = range.end;
    }
    EXPECT_EQ(next, num_experts);
  }
}

/// One of `size` ranks.
class Rank final : public Communicator {
 public:
  explicit Rank(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }

 private:
  const int size_;
};

/// What loading says about a checkpoint of `written` when config.json says `config`. There is no
/// device: a checkpoint that does not fit must be refused before anything is loaded.
absl::Status LoadError(const ModelConfig& written, const ModelConfig& config, int num_ranks = 1) {
  const TempDirectory directory;
  const absl::Status status =
      WriteRandomCheckpoint(written, 1, int64_t{1} << 40, directory.path(), {});
  EXPECT_TRUE(status.ok()) << status;
  const auto checkpoint = Checkpoint::Open(directory.path());
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  Backend backend;
  backend.communicator = std::make_unique<Rank>(num_ranks);
  return LoadModelWeights(config, **checkpoint, DType::kFloat32, backend, {}).status();
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

TEST(LoadModelWeights, RefusesMoreRanksThanExperts) {
  const ModelConfig config = *PresetModelConfig("tiny");
  const absl::Status status = LoadError(config, config, 17);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("n_routed_experts is 16"), HasSubstr("17")));
}

}  // namespace
}  // namespace shoal
