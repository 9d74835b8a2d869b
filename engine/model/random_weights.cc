#include "engine/model/random_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "engine/model/checkpoint_layout.h"
#include "kernels/normal.h"

namespace shoal {
namespace {

constexpr float kLogitDeviation = 3;  // what is likely is then some dozen tokens of 100,000

/// The tensors of a layer, to tell their random numbers apart.
enum class Part : uint32_t {
  kEmbedding,
  kQkv,
  kQkvBias,
  kO,
  kOBias,
  kRouter,
  kRouterDeviations,
  kGateUp,
  kDown,
  kLmHead,
};

/// The elements of a weight that was allocated, in the backend's own order.
Tensor Elements(const void* data, DType dtype, int64_t first, int64_t count) {
  auto* bytes = static_cast<std::byte*>(const_cast<void*>(data));
  return Tensor(bytes + first * SizeOf(dtype), dtype, {count});
}

/// Deviation of the weights that gives results of its input's deviation.
float KeepingDeviation(int64_t in_features) {
  return 1 / std::sqrt(static_cast<float>(in_features));
}

class RandomWeightsMaker {
 public:
  RandomWeightsMaker(const ModelConfig& config, const RandomWeightsOptions& options, DType dtype,
                     const ExpertPlacement& placement, Backend& backend,
                     const LoadProgress& progress)
      : config_(config),
        options_(options),
        dtype_(dtype),
        rank_(backend.communicator->rank()),
        experts_(placement.experts_of(rank_)),
        experts_per_rank_(placement.experts_per_rank()),
        device_(*backend.device),
        ops_(*backend.ops),
        progress_(progress) {
    for (const TensorSpec& spec : CheckpointLayout(config)) {
      if (spec.expert >= 0 && std::ranges::find(experts_, spec.expert) == experts_.end()) continue;
      int64_t bytes = SizeOf(dtype);
      for (int64_t dim : spec.shape) bytes *= dim;
      total_bytes_ += bytes;
    }
  }

  absl::StatusOr<ModelWeights> Make() {
    const float head_deviation = kLogitDeviation * KeepingDeviation(config_.hidden_size);
    ModelWeights weights;
    ASSIGN_OR_RETURN(weights.embedding, MakeMatrix({config_.vocab_size, config_.hidden_size},
                                                   config_.tie_word_embeddings ? head_deviation : 1,
                                                   Part::kEmbedding));
    for (layer_ = 0; layer_ < config_.num_hidden_layers; ++layer_) {
      ASSIGN_OR_RETURN(weights.layers.emplace_back(), MakeLayer());
    }
    ASSIGN_OR_RETURN(weights.norm, MakeNorm());
    weights.lm_head = weights.embedding;
    if (!config_.tie_word_embeddings) {
      ASSIGN_OR_RETURN(weights.lm_head, MakeMatrix({config_.vocab_size, config_.hidden_size},
                                                   head_deviation, Part::kLmHead));
    }
    RETURN_IF_ERROR(device_.Synchronize());
    return weights;
  }

 private:
  struct MatrixShape {
    int64_t out_features = 0;
    int64_t in_features = 0;
  };

  absl::StatusOr<LayerWeights> MakeLayer() {
    const AttentionShape heads = config_.attention_shape();
    const int64_t hidden = config_.hidden_size;
    const int64_t query_width = int64_t{heads.num_heads} * heads.head_dim;
    const int64_t qkv_width = query_width + int64_t{2} * heads.num_kv_heads * heads.head_dim;
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, MakeNorm());
    ASSIGN_OR_RETURN(layer.qkv,
                     MakeMatrix({qkv_width, hidden}, KeepingDeviation(hidden), Part::kQkv));
    ASSIGN_OR_RETURN(layer.o,
                     MakeMatrix({hidden, query_width}, KeepingDeviation(query_width), Part::kO));
    if (config_.attention_bias) {
      ASSIGN_OR_RETURN(layer.qkv_bias, MakeBias(qkv_width, Part::kQkvBias));
      ASSIGN_OR_RETURN(layer.o_bias, MakeBias(hidden, Part::kOBias));
    }
    ASSIGN_OR_RETURN(layer.post_attention_norm, MakeNorm());
    if (!config_.is_moe_layer(layer_)) {
      constexpr int kOnlyExpert[] = {0};
      ASSIGN_OR_RETURN(layer.dense, MakeFfn(kOnlyExpert, config_.intermediate_size));
      return layer;
    }
    ASSIGN_OR_RETURN(layer.router.weight, MakeRouter());
    layer.router.renormalize = config_.norm_topk_prob;
    layer.router.num_shared = config_.n_shared_experts;
    layer.experts.first_expert = rank_ * experts_per_rank_;
    ASSIGN_OR_RETURN(layer.experts.weights, MakeFfn(experts_, config_.moe_intermediate_size));
    return layer;
  }

  /// All ones.
  absl::StatusOr<Norm> MakeNorm() {
    std::vector<float> ones(static_cast<size_t>(config_.hidden_size), 1.0f);
    const Tensor host(ones.data(), DType::kFloat32, {config_.hidden_size});
    ASSIGN_OR_RETURN(const Tensor weight, device_.LoadTensor(host, dtype_));
    Report(weight.size_bytes());
    return Norm{.weight = weight, .epsilon = config_.rms_norm_eps};
  }

  absl::StatusOr<Weight> MakeMatrix(const MatrixShape& shape, float deviation, Part part) {
    ASSIGN_OR_RETURN(const Weight weight,
                     device_.AllocateWeight(shape.out_features, shape.in_features, dtype_));
    const int64_t count = shape.out_features * shape.in_features;
    ops_.FillNormal(Elements(weight.data, dtype_, 0, count), SeedOf(part, 0), deviation);
    Report(count * SizeOf(dtype_));
    return weight;
  }

  absl::StatusOr<Tensor> MakeBias(int64_t size, Part part) {
    ASSIGN_OR_RETURN(const Tensor bias, device_.Allocate(dtype_, {size}));
    ops_.FillNormal(bias, SeedOf(part, 0), static_cast<float>(config_.initializer_range));
    Report(bias.size_bytes());
    return bias;
  }

  /// On the host, since each row has a deviation of its own.
  absl::StatusOr<Weight> MakeRouter() {
    const int64_t hidden = config_.hidden_size;
    std::vector<float> values;
    values.reserve(static_cast<size_t>(config_.n_routed_experts * hidden));
    for (int64_t expert = 0; expert < config_.n_routed_experts; ++expert) {
      const float skew = Normal(SeedOf(Part::kRouterDeviations, 0), expert);
      const float deviation = std::exp(options_.routing_skew * skew) * KeepingDeviation(hidden);
      const uint64_t seed = SeedOf(Part::kRouter, static_cast<uint32_t>(expert));
      for (int64_t i = 0; i < hidden; ++i) values.push_back(deviation * Normal(seed, i));
    }
    const Tensor host(values.data(), DType::kFloat32, {config_.n_routed_experts, hidden});
    Report(host.num_elements() * SizeOf(dtype_));
    return device_.LoadWeight({&host, 1}, dtype_);
  }

  absl::StatusOr<FfnWeights> MakeFfn(std::span<const int> experts, int64_t width) {
    const int64_t matrix = width * config_.hidden_size;
    ASSIGN_OR_RETURN(const FfnWeights weights,
                     device_.AllocateFfn(std::ssize(experts), config_.hidden_size, width, dtype_));
    for (int64_t i = 0; i < std::ssize(experts); ++i) {
      const auto expert = static_cast<uint32_t>(experts[static_cast<size_t>(i)]);
      ops_.FillNormal(Elements(weights.gate_up, dtype_, 2 * i * matrix, 2 * matrix),
                      SeedOf(Part::kGateUp, expert), KeepingDeviation(config_.hidden_size));
      ops_.FillNormal(Elements(weights.down, dtype_, i * matrix, matrix),
                      SeedOf(Part::kDown, expert), KeepingDeviation(width));
      Report(3 * matrix * SizeOf(dtype_));
    }
    return weights;
  }

  /// The seed of one tensor of the layer.
  uint64_t SeedOf(Part part, uint32_t expert) const {
    const std::array<uint32_t, 4> words = Philox4x32(
        {static_cast<uint32_t>(layer_), static_cast<uint32_t>(part), expert, 0},
        {static_cast<uint32_t>(options_.seed), static_cast<uint32_t>(options_.seed >> 32)});
    return uint64_t{words[0]} << 32 | words[1];
  }

  static float Normal(uint64_t seed, int64_t index) {
    return static_cast<float>(ByteSumPair(seed, index / 2)[static_cast<size_t>(index % 2)]) /
           kByteSumDeviation;
  }

  void Report(int64_t bytes) {
    done_bytes_ += bytes;
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  const ModelConfig& config_;
  const RandomWeightsOptions& options_;
  const DType dtype_;
  const int rank_;
  const std::span<const int> experts_;
  const int experts_per_rank_;
  Device& device_;
  Ops& ops_;
  const LoadProgress& progress_;
  int layer_ = 0;  // being made
  int64_t done_bytes_ = 0;
  int64_t total_bytes_ = 0;
};

}  // namespace

absl::StatusOr<ModelWeights> MakeRandomWeights(const ModelConfig& config,
                                               const RandomWeightsOptions& options, DType dtype,
                                               const ExpertPlacement& placement, Backend& backend,
                                               const LoadProgress& progress) {
  RandomWeightsMaker maker(config, options, dtype, placement, backend, progress);
  ASSIGN_OR_RETURN(ModelWeights weights, maker.Make());
  RETURN_IF_ERROR(LoadExpertPlaces(placement, backend, weights));
  return weights;
}

}  // namespace shoal
