#include "engine/model/weights.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "engine/model/checkpoint_layout.h"

namespace shoal {
namespace {

/// True for a tensor that a checkpoint may hold and that this model computes without.
bool IsRedundant(const ModelConfig& config, const std::string& name) {
  return name.ends_with(".rotary_emb.inv_freq") ||
         (config.tie_word_embeddings && name == "lm_head.weight");
}

/// The checkpoint's tensors that belong to this rank, each present and of its expected shape.
/// Weights that the config knows nothing of (biases, say) mean that the two do not belong together.
absl::StatusOr<Checkpoint::Tensors> SelectTensors(const ModelConfig& config,
                                                  const Checkpoint& checkpoint,
                                                  std::span<const int> experts) {
  Checkpoint::Tensors unexpected = checkpoint.tensors();
  Checkpoint::Tensors selected;
  for (const TensorSpec& spec : CheckpointLayout(config)) {
    ASSIGN_OR_RETURN(const Tensor tensor, checkpoint.Get(spec.name, spec.shape));
    unexpected.erase(spec.name);
    if (spec.expert < 0 || std::ranges::find(experts, spec.expert) != experts.end()) {
      selected.emplace(spec.name, tensor);
    }
  }
  for (const auto& [name, tensor] : unexpected) {
    if (IsRedundant(config, name)) continue;
    return absl::InvalidArgumentError(fmt::format(
        "tensor {} is in the checkpoint, but a model of this config.json has no such tensor",
        name));
  }
  return selected;
}

/// The columns [begin, begin + count) of a host matrix, copied to `to`.
void CopyColumns(const Tensor& matrix, int64_t begin, int64_t count, std::byte* to) {
  const int64_t row_bytes = matrix.shape[1] * SizeOf(matrix.dtype);
  const int64_t bytes = count * SizeOf(matrix.dtype);
  const std::byte* from = matrix.as<const std::byte>() + begin * SizeOf(matrix.dtype);
  for (int64_t row = 0; row < matrix.shape[0]; ++row) {
    std::memcpy(to + row * bytes, from + row * row_bytes, static_cast<size_t>(bytes));
  }
}

/// A host network cut into `count` networks of equal width, the sum of whose results is its own.
/// `memory` holds what has to be copied.
std::vector<HostFfn> CutWidth(const HostFfn& network, int count, std::vector<std::byte>& memory) {
  const int64_t hidden_size = network.down.shape[0];
  const int64_t width = network.down.shape[1] / count;
  memory.resize(static_cast<size_t>(network.down.size_bytes()));
  std::vector<HostFfn> parts;
  for (int i = 0; i < count; ++i) {
    std::byte* down = memory.data() + network.down.size_bytes() / count * i;
    CopyColumns(network.down, i * width, width, down);
    parts.push_back({.gate = network.gate.Rows(i * width, width),
                     .up = network.up.Rows(i * width, width),
                     .down = Tensor(down, network.down.dtype, {hidden_size, width})});
  }
  return parts;
}

/// Moves tensors from the checkpoint to the device, layer by layer.
class WeightLoader {
 public:
  WeightLoader(const ModelConfig& config, Checkpoint::Tensors tensors,
               const ExpertPlacement& placement, DType dtype, Backend& backend,
               const LoadProgress& progress)
      : config_(config),
        tensors_(std::move(tensors)),
        placement_(placement),
        rank_(backend.communicator->rank()),
        dtype_(dtype),
        device_(*backend.device),
        progress_(progress) {
    for (const auto& [name, tensor] : tensors_) total_bytes_ += tensor.size_bytes();
  }

  absl::StatusOr<ModelWeights> Load() {
    ModelWeights weights;
    ASSIGN_OR_RETURN(weights.embedding, LoadMatrices({"model.embed_tokens.weight"}));
    for (int i = 0; i < config_.num_hidden_layers; ++i) {
      ASSIGN_OR_RETURN(weights.layers.emplace_back(), LoadLayer(i));
    }
    ASSIGN_OR_RETURN(weights.norm, LoadNorm("model.norm.weight"));
    weights.lm_head = weights.embedding;
    if (!config_.tie_word_embeddings) {
      ASSIGN_OR_RETURN(weights.lm_head, LoadMatrices({"lm_head.weight"}));
    }
    return weights;
  }

 private:
  absl::StatusOr<LayerWeights> LoadLayer(int index) {
    const std::string prefix = fmt::format("model.layers.{}", index);
    const std::string q = prefix + ".self_attn.q_proj";
    const std::string k = prefix + ".self_attn.k_proj";
    const std::string v = prefix + ".self_attn.v_proj";
    const std::string o = prefix + ".self_attn.o_proj";
    LayerWeights layer;
    ASSIGN_OR_RETURN(layer.input_norm, LoadNorm(prefix + ".input_layernorm.weight"));
    ASSIGN_OR_RETURN(layer.qkv, LoadMatrices({q + ".weight", k + ".weight", v + ".weight"}));
    ASSIGN_OR_RETURN(layer.o, LoadMatrices({o + ".weight"}));
    if (config_.attention_bias) {
      ASSIGN_OR_RETURN(layer.qkv_bias, LoadVectors({q + ".bias", k + ".bias", v + ".bias"}));
      ASSIGN_OR_RETURN(layer.o_bias, LoadVectors({o + ".bias"}));
    }
    ASSIGN_OR_RETURN(layer.post_attention_norm,
                     LoadNorm(prefix + ".post_attention_layernorm.weight"));
    if (config_.is_moe_layer(index)) {
      RETURN_IF_ERROR(LoadMoe(prefix + ".mlp", layer));
    } else {
      const HostFfn dense = TakeFfn(prefix + ".mlp");
      ASSIGN_OR_RETURN(layer.dense, LoadFfn({&dense, 1}));
    }
    return layer;
  }

  absl::Status LoadMoe(const std::string& prefix, LayerWeights& layer) {
    ASSIGN_OR_RETURN(layer.router.weight, LoadMatrices({prefix + ".gate.weight"}));
    layer.router.renormalize = config_.norm_topk_prob;
    layer.router.num_shared = config_.n_shared_experts;
    std::vector<std::byte> memory;
    std::vector<HostFfn> shared;
    if (config_.n_shared_experts > 0) {
      shared = CutWidth(TakeFfn(prefix + ".shared_experts"), config_.n_shared_experts, memory);
    }
    std::vector<HostFfn> experts;
    for (const int expert : placement_.experts_of(rank_)) {
      const int number = expert - config_.n_routed_experts;  // among the shared ones
      experts.push_back(number >= 0 ? shared[static_cast<size_t>(number)]
                                    : TakeFfn(fmt::format("{}.experts.{}", prefix, expert)));
    }
    layer.experts.first_expert = rank_ * placement_.experts_per_rank();
    ASSIGN_OR_RETURN(layer.experts.weights, LoadFfn(experts));
    return absl::OkStatus();
  }

  /// One weight of all matrices, one under the other.
  absl::StatusOr<Weight> LoadMatrices(const std::vector<std::string>& names) {
    std::vector<Tensor> blocks;
    blocks.reserve(names.size());
    for (const std::string& name : names) blocks.push_back(Take(name));
    absl::StatusOr<Weight> weight = device_.LoadWeight(blocks, dtype_);
    Report();
    return weight;
  }

  HostFfn TakeFfn(const std::string& prefix) {
    return {.gate = Take(prefix + ".gate_proj.weight"),
            .up = Take(prefix + ".up_proj.weight"),
            .down = Take(prefix + ".down_proj.weight")};
  }

  absl::StatusOr<FfnWeights> LoadFfn(std::span<const HostFfn> experts) {
    absl::StatusOr<FfnWeights> weights = device_.LoadFfn(experts, dtype_);
    Report();
    return weights;
  }

  absl::StatusOr<Norm> LoadNorm(const std::string& name) {
    ASSIGN_OR_RETURN(const Tensor weight, LoadVectors({name}));
    return Norm{.weight = weight, .epsilon = config_.rms_norm_eps};
  }

  /// One vector of all vectors, one after the other.
  absl::StatusOr<Tensor> LoadVectors(const std::vector<std::string>& names) {
    const DType file_dtype = tensors_.find(names.front())->second.dtype;
    std::vector<std::byte> bytes;
    for (const std::string& name : names) {
      const Tensor part = Take(name);
      if (part.dtype != file_dtype) {
        return absl::InvalidArgumentError(fmt::format("tensor {} is {}, but {} is {}", name,
                                                      Name(part.dtype), names.front(),
                                                      Name(file_dtype)));
      }
      const auto* data = part.as<const std::byte>();
      bytes.insert(bytes.end(), data, data + part.size_bytes());
    }
    const int64_t elements = static_cast<int64_t>(bytes.size()) / SizeOf(file_dtype);
    absl::StatusOr<Tensor> vector =
        device_.LoadTensor(Tensor(bytes.data(), file_dtype, {elements}), dtype_);
    Report();
    return vector;
  }

  /// A selected tensor; it is counted as read and its bytes are on their way from disk.
  Tensor Take(const std::string& name) {
    const auto found = tensors_.find(name);
    SHOAL_CHECK(found != tensors_.end(), "{} is not in the checkpoint's layout", name);
    Checkpoint::Prefetch(found->second);
    done_bytes_ += found->second.size_bytes();
    return found->second;
  }

  void Report() const {
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  const ModelConfig& config_;
  const Checkpoint::Tensors tensors_;  // those of this rank
  const ExpertPlacement& placement_;
  const int rank_;
  const DType dtype_;
  Device& device_;
  const LoadProgress& progress_;
  int64_t done_bytes_ = 0;
  int64_t total_bytes_ = 0;
};

}  // namespace

absl::StatusOr<ModelWeights> LoadModelWeights(const ModelConfig& config,
                                              const Checkpoint& checkpoint, DType dtype,
                                              const ExpertPlacement& placement, Backend& backend,
                                              const LoadProgress& progress) {
  const Communicator& ranks = *backend.communicator;
  SHOAL_CHECK(placement.num_ranks() == ranks.size(),
              "a placement on {} ranks, of which there are {}", placement.num_ranks(),
              ranks.size());
  SHOAL_CHECK(placement.num_experts() == config.num_experts(),
              "a placement of {} experts, the model has {}", placement.num_experts(),
              config.num_experts());
  ASSIGN_OR_RETURN(Checkpoint::Tensors tensors,
                   SelectTensors(config, checkpoint, placement.experts_of(ranks.rank())));
  WeightLoader loader(config, std::move(tensors), placement, dtype, backend, progress);
  ASSIGN_OR_RETURN(ModelWeights weights, loader.Load());
  RETURN_IF_ERROR(LoadExpertPlaces(placement, backend, weights));
  return weights;
}

absl::Status LoadExpertPlaces(const ExpertPlacement& placement, Backend& backend,
                              ModelWeights& weights) {
  weights.experts_per_rank = placement.experts_per_rank();
  if (placement.num_ranks() == 1 || placement.num_experts() == 0) return absl::OkStatus();
  const std::vector<int32_t> places = placement.PlacesFor(backend.communicator->rank());
  ASSIGN_OR_RETURN(weights.expert_places,
                   backend.device->Allocate(DType::kInt32, {placement.num_experts()}));
  backend.device->CopyFromHost(places.data(), weights.expert_places);
  return backend.device->Synchronize();
}

}  // namespace shoal
