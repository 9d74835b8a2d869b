#include <fmt/format.h>

#include <algorithm>

#include "kernels/cuda/gemm_tile.h"
#include "tests/bench/gpu_bench_commands.h"

namespace shoal::bench {
namespace {

/// As many blocks as run at once.
cuda::Cut CutOf(int tile, const cuda::Machine& machine) {
  constexpr int kReservedBytes = 1024;  // of shared memory, for each block
  const int fitting =
      machine.shared_bytes / (cuda::SharedBytes(cuda::kTiles[tile]) + kReservedBytes);
  return {
      .tile = tile,
      .max_blocks = machine.multiprocessors * std::clamp(fitting, 1, cuda::kTiles[tile].blocks)};
}

class TileBench {
 public:
  TileBench(const Scale& scale, Gpu& gpu, Report& report)
      : scale_(scale),
        gpu_(gpu),
        report_(report),
        config_(PresetModelConfig(scale.preset).value()),
        weights_(MakeModel(config_, gpu)),
        machine_(cuda::ThisMachine()) {
    const int64_t tokens = scale.max_tokens(), hidden = config_.hidden_size;
    x_ = gpu.Random(DType::kBFloat16, {tokens, hidden});
    normed_ = gpu.Allocate(DType::kBFloat16, {tokens, hidden});
    out_ = gpu.Allocate(DType::kBFloat16, {tokens, weights_.layers[0].qkv.out_features});
    rows_ = gpu.Allocate(DType::kBFloat16, {tokens, config_.num_routes(), hidden});
    for (const LayerWeights& layer : weights_.layers) {
      if (!layer.router.weight.empty()) routed_.push_back(&layer);
    }
    routing_ = {.expert_ids = gpu.Allocate(DType::kInt32, {tokens, config_.num_routes()}),
                .weights = gpu.Allocate(DType::kFloat32, {tokens, config_.num_routes()}),
                .num_tokens = {}};
    gpu.ops().AddRmsNormRoute({}, x_, routed_[0]->input_norm, routed_[0]->router, normed_,
                              routing_);
    workspace_ = gpu.Allocate(
        DType::kByte, {static_cast<int64_t>(cuda::FfnWorkspaceBytes(
                          ShapeOf(routed_[0]->experts.weights), tokens * config_.num_routes()))});
  }

  void Run() {
    std::vector<int64_t> sizes = scale_.decode_tokens;
    sizes.insert(sizes.end(), scale_.prefill_tokens.begin(), scale_.prefill_tokens.end());
    for (int64_t tokens : sizes) {
      for (int tile = 0; tile < cuda::kNumTiles; ++tile) {
        if (cuda::SharedBytes(cuda::kTiles[tile]) > machine_.block_shared_bytes) continue;
        Linear(tokens, tile);
        Experts(tokens, tile);
      }
    }
  }

 private:
  static cuda::FfnShape ShapeOf(const FfnWeights& weights) {
    return {.num_experts = weights.num_experts,
            .hidden_size = weights.hidden_size,
            .width = weights.width};
  }

  template <typename Enqueue>
  void Add(const char* name, int64_t tokens, int tile, size_t num_layers, const Enqueue& enqueue) {
    const double seconds = gpu_.MedianRecordedSeconds([&] {
      for (size_t i = 0; i < num_layers; ++i) enqueue(i, CutOf(tile, machine_));
    });
    const cuda::Tile& shape = cuda::kTiles[tile];
    report_.Add({.name = fmt::format("{} {}x{}", name, shape.outputs, shape.rows),
                 .shape = fmt::format("T={}", tokens),
                 .seconds = seconds / static_cast<double>(num_layers)});
  }

  void Linear(int64_t tokens, int tile) {
    Add("qkv", tokens, tile, weights_.layers.size(), [&](size_t i, const cuda::Cut& cut) {
      const Weight& weight = weights_.layers[i].qkv;
      cuda::Linear({.x = x_.as<const BFloat16>(),
                    .weight = static_cast<const BFloat16*>(weight.data),
                    .out = out_.data,
                    .num_tokens = tokens,
                    .in_features = weight.in_features,
                    .num_outputs = weight.out_features},
                   cut, gpu_.stream());
    });
  }

  void Experts(int64_t tokens, int tile) {
    Add("expert ffn", tokens, tile, routed_.size(), [&](size_t i, const cuda::Cut& cut) {
      const FfnWeights& weights = routed_[i]->experts.weights;
      cuda::Ffn({.shape = ShapeOf(weights),
                 .gate_up = static_cast<const BFloat16*>(weights.gate_up),
                 .down = static_cast<const BFloat16*>(weights.down),
                 .x = normed_.as<const BFloat16>(),
                 .expert_ids = routing_.expert_ids.as<const int32_t>(),
                 .num_tokens = tokens,
                 .num_routes = config_.num_routes(),
                 .rows = rows_.as<BFloat16>(),
                 .workspace = workspace_.data},
                cut, gpu_.stream());
    });
  }

  const Scale& scale_;
  Gpu& gpu_;
  Report& report_;
  const ModelConfig config_;
  const ModelWeights weights_;
  const cuda::Machine machine_;
  std::vector<const LayerWeights*> routed_;
  Tensor x_, normed_, out_;  // [max_tokens, hidden_size], out_ as wide as qkv
  Tensor rows_;              // [max_tokens, num_routes, hidden_size]
  Routing routing_;          // of the first routed layer, for all
  Tensor workspace_;
};

}  // namespace

void MeasureTiles(const Scale& scale, Gpu& gpu, Report& report) {
  TileBench(scale, gpu, report).Run();
}

}  // namespace shoal::bench
