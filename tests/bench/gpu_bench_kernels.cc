#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "engine/model/random_weights.h"
#include "tests/bench/gpu_bench_batch.h"
#include "tests/bench/gpu_bench_commands.h"

namespace shoal::bench {
namespace {

std::string Tokens(int64_t num_tokens) { return fmt::format("T={}", num_tokens); }

double Product(std::initializer_list<int64_t> factors) {
  double product = 1;
  for (int64_t factor : factors) product *= static_cast<double>(factor);
  return product;
}

constexpr int64_t kElementBytes = 2;  // of bfloat16

class KernelBench {
 public:
  KernelBench(const Scale& scale, Gpu& gpu, Report& report)
      : scale_(scale),
        gpu_(gpu),
        ops_(gpu.ops()),
        report_(report),
        config_(PresetModelConfig(scale.preset).value()),
        weights_(MakeModel(config_, gpu)),
        hidden_(config_.hidden_size),
        heads_(config_.attention_shape()),
        query_width_(int64_t{heads_.num_heads} * heads_.head_dim),
        qkv_width_(query_width_ + int64_t{2} * heads_.num_kv_heads * heads_.head_dim) {
    const int64_t tokens = scale.max_tokens();
    normed_ = gpu.Random(DType::kBFloat16, {tokens, hidden_});
    residual_ = gpu.Random(DType::kBFloat16, {tokens, hidden_});
    delta_ = gpu.Random(DType::kBFloat16, {tokens, hidden_});
    out_ = gpu.Allocate(DType::kBFloat16, {tokens, hidden_});
    qkv_ = gpu.Random(DType::kBFloat16, {tokens, qkv_width_});
    rows_ = gpu.Random(DType::kBFloat16, {tokens, config_.num_routes(), hidden_});
    for (const LayerWeights& layer : weights_.layers) {
      if (!layer.router.weight.empty()) AddRoutedLayer(layer);
    }
    AllocateKv();
  }

  void Run() {
    for (int64_t tokens : scale_.decode_tokens) NormAndRoute(tokens);
    for (int64_t tokens : scale_.decode_tokens) Experts(tokens);
    for (int64_t tokens : scale_.decode_tokens) DenseLayers(tokens);
    for (const Sequences& sequences : scale_.decode_attention) DecodeAttention(sequences);
    for (int64_t tokens : scale_.decode_tokens) RopeAndCombine(tokens);
    Sampling();
    for (int64_t tokens : scale_.prefill_tokens) Experts(tokens);
    for (int64_t tokens : scale_.prefill_tokens) DenseLayers(tokens);
    for (int64_t tokens : scale_.prefill_tokens) NormAndRoute(tokens);
    for (int64_t tokens : scale_.prefill_tokens) RopeAndCombine(tokens);
    PrefillAttention();
  }

 private:
  /// A MoE layer with the routing that its router chooses for normed_.
  struct RoutedLayer {
    const LayerWeights* weights = nullptr;
    Routing routing;
    std::vector<int32_t> expert_ids;  // [max_tokens * num_routes] on the host
  };

  void AddRoutedLayer(const LayerWeights& layer) {
    const int64_t tokens = normed_.shape[0], routes = config_.num_routes();
    RoutedLayer routed = {.weights = &layer, .routing = {}, .expert_ids = {}};
    routed.routing.expert_ids = gpu_.Allocate(DType::kInt32, {tokens, routes});
    routed.routing.weights = gpu_.Allocate(DType::kFloat32, {tokens, routes});
    ops_.AddRmsNormRoute({}, normed_, layer.input_norm, layer.router, out_, routed.routing);
    routed.expert_ids = gpu_.Download(routed.routing.expert_ids);
    layers_.push_back(std::move(routed));
  }

  static Routing Rows(const Routing& routing, int64_t tokens) {
    return {.expert_ids = routing.expert_ids.Rows(0, tokens),
            .weights = routing.weights.Rows(0, tokens),
            .num_tokens = {}};
  }

  /// Experts that so many tokens go to, shared ones included.
  double CountExpertsOf(const RoutedLayer& layer, int64_t tokens) const {
    const auto ids =
        std::span(layer.expert_ids).first(static_cast<size_t>(tokens * config_.num_routes()));
    return static_cast<double>(CountExperts(ids, config_.num_experts()));
  }

  void Add(Row row) {
    row.target = TargetOf(scale_, row.name, row.shape);
    report_.Add(std::move(row));
  }

  /// Seconds of one of `count` calls of `enqueue(i)`.
  template <typename Enqueue>
  double SecondsPerCall(int64_t count, const Enqueue& enqueue) {
    return gpu_.MedianRecordedSeconds([&] {
      for (int64_t i = 0; i < count; ++i) enqueue(i);
    }) / static_cast<double>(count);
  }

  template <typename Enqueue>
  double SecondsPerRoutedLayer(const Enqueue& enqueue) {
    return SecondsPerCall(std::ssize(layers_),
                          [&](int64_t i) { enqueue(layers_[static_cast<size_t>(i)]); });
  }

  void NormAndRoute(int64_t tokens) {
    const double seconds = SecondsPerRoutedLayer([&](const RoutedLayer& layer) {
      ops_.AddRmsNormRoute(delta_.Rows(0, tokens), residual_.Rows(0, tokens),
                           layer.weights->post_attention_norm, layer.weights->router,
                           out_.Rows(0, tokens), Rows(layer.routing, tokens));
    });
    Add({.name = "norm + route",
         .shape = Tokens(tokens),
         .seconds = seconds,
         .bytes = Product({kElementBytes, hidden_, 4 * tokens + config_.n_routed_experts}),
         .flops = Product({2, tokens, hidden_, config_.n_routed_experts})});
  }

  /// The whole op, then its kernels by themselves: the last one is down, the one before it gate and
  /// up, all others are the plan. All layers have the routing of the first one, so that the plan is
  /// right for each when there is none before it.
  void Experts(int64_t tokens) {
    const Tensor expert_ids = layers_[0].routing.expert_ids.Rows(0, tokens);
    const auto recording = gpu_.Record([&] {
      for (const RoutedLayer& layer : layers_) {
        ops_.ExpertFfn(normed_.Rows(0, tokens), expert_ids, layer.weights->experts,
                       rows_.Rows(0, tokens));
      }
    });
    const auto num_layers = static_cast<double>(layers_.size());
    const std::vector<Recording::Kernel> kernels = recording->Kernels();
    const size_t per_layer = kernels.size() / layers_.size();
    SHOAL_CHECK(per_layer >= 2 && kernels.size() % layers_.size() == 0, "{} kernels in {} layers",
                kernels.size(), layers_.size());
    std::vector<Recording::Kernel> plan, gate_up, down, pair;
    for (size_t i = 0; i < kernels.size(); ++i) {
      const size_t place = i % per_layer + 2 - per_layer;  // wraps for the plan
      (place == 1 ? down : place == 0 ? gate_up : plan).push_back(kernels[i]);
      if (place <= 1) pair.push_back(kernels[i]);
    }
    const double experts = CountExpertsOf(layers_[0], tokens);
    const int64_t width = config_.moe_intermediate_size, routes = config_.num_routes();
    const double matrix = Product({hidden_, width});
    const double rows = Product({tokens, routes});
    const double gate_up_bytes =
        kElementBytes * (2 * experts * matrix + Product({tokens, hidden_}) + rows * width);
    const double down_bytes = kElementBytes * (experts * matrix + rows * width + rows * hidden_);
    const auto add = [&](const char* name, double seconds, double bytes, double matrices) {
      Add({.name = name,
           .shape = Tokens(tokens),
           .seconds = seconds / num_layers,
           .bytes = bytes,
           .flops = 2 * rows * matrix * matrices,
           .more = {{"experts", experts}}});
    };
    add("expert ffn", gpu_.MedianSeconds(*recording), gate_up_bytes + down_bytes, 3);
    if (!plan.empty()) {
      Add({.name = "expert plan",
           .shape = Tokens(tokens),
           .seconds = gpu_.MedianSeconds(*gpu_.Pick(plan)) / num_layers});
    }
    add("expert gate/up", gpu_.MedianSeconds(*gpu_.Pick(gate_up)), gate_up_bytes, 2);
    add("expert down", gpu_.MedianSeconds(*gpu_.Pick(down)), down_bytes, 1);
    add("expert pair", gpu_.MedianSeconds(*gpu_.Pick(pair)), gate_up_bytes + down_bytes, 3);
  }

  void AddLinear(const char* name, int64_t tokens, const Weight& weight, int64_t out_bytes,
                 double seconds) {
    const int64_t in = weight.in_features, out = weight.out_features;
    Add({.name = name,
         .shape = Tokens(tokens),
         .seconds = seconds,
         .bytes = Product({kElementBytes, in, out + tokens}) + Product({out_bytes, tokens, out}),
         .flops = Product({2, tokens, in, out})});
  }

  void DenseLayers(int64_t tokens) {
    const auto num_layers = std::ssize(weights_.layers);
    const auto layer = [&](int64_t i) -> const LayerWeights& {
      return weights_.layers[static_cast<size_t>(i)];
    };
    const Tensor x = normed_.Rows(0, tokens), out = out_.Rows(0, tokens);
    AddLinear("qkv", tokens, layer(0).qkv, kElementBytes,
              SecondsPerCall(num_layers, [&](int64_t i) {
                ops_.Linear(x, layer(i).qkv, {}, qkv_.Rows(0, tokens));
              }));
    AddLinear("o", tokens, layer(0).o, kElementBytes,
              SecondsPerCall(num_layers, [&](int64_t i) { ops_.Linear(x, layer(i).o, {}, out); }));
    const FfnWeights& dense = layer(0).dense;
    const double seconds = SecondsPerCall(2, [&](int64_t) { ops_.DenseFfn(x, dense, out); });
    Add({.name = "dense ffn",
         .shape = Tokens(tokens),
         .seconds = seconds,
         .bytes = Product({kElementBytes, 3, hidden_, dense.width}) +
                  Product({kElementBytes, tokens, 2 * hidden_ + 2 * dense.width}),
         .flops = Product({6, tokens, hidden_, dense.width})});
    if (tokens > std::ranges::max(scale_.decode_tokens)) return;
    const Tensor logits = Logits(tokens);
    AddLinear("head", tokens, weights_.lm_head, sizeof(float),
              SecondsPerCall(2, [&](int64_t) { ops_.Linear(x, weights_.lm_head, {}, logits); }));
  }

  /// Float rows for the head, made once.
  Tensor Logits(int64_t rows) {
    if (logits_.empty()) {
      const int64_t most = std::max(std::ranges::max(scale_.decode_tokens), scale_.sampling_rows);
      logits_ = gpu_.Allocate(DType::kFloat32, {most, config_.vocab_size});
    }
    return logits_.Rows(0, rows);
  }

  /// KV caches of two layers, each of enough blocks for every shape and far larger than the cache
  /// of the device.
  void AllocateKv() {
    constexpr int64_t kPoolTokens = 1 << 16;
    const auto blocks_of = [&](const Sequences& sequences) {
      return sequences.count * ((sequences.context + scale_.block_size - 1) / scale_.block_size);
    };
    int64_t num_blocks = scale_.has_targets() ? kPoolTokens / scale_.block_size : 0;
    num_blocks = std::max(num_blocks, blocks_of(scale_.prefill_attention));
    num_blocks = std::max(num_blocks, scale_.max_tokens() / scale_.block_size + 1);
    num_blocks = std::max(num_blocks, std::ranges::max(scale_.decode_tokens));
    for (const Sequences& sequences : scale_.decode_attention) {
      num_blocks = std::max(num_blocks, blocks_of(sequences));
    }
    for (int i = 0; i < 2; ++i) {
      kv_.push_back(gpu_.Random(DType::kBFloat16, {num_blocks, 2, heads_.num_kv_heads,
                                                   scale_.block_size, heads_.head_dim}));
    }
  }

  BatchShape ShapeOf(const Sequences& sequences, int64_t query_len) const {
    return {.sequences = sequences,
            .query_len = query_len,
            .block_size = scale_.block_size,
            .num_blocks = kv_[0].shape[0],
            .vocab = config_.vocab_size};
  }

  /// Keys and values of all tokens, their queries and results.
  double AttentionBytes(int64_t cached_tokens, int64_t queries) const {
    return Product({kElementBytes, 2, heads_.num_kv_heads, heads_.head_dim, cached_tokens}) +
           Product({kElementBytes, 2, query_width_, queries});
  }

  /// Other blocks in each call, out of a pool that is far larger than the cache.
  void DecodeAttention(const Sequences& sequences) {
    constexpr int kVariants = 8;
    const auto [count, context] = sequences;
    std::vector<AttentionMeta> variants;
    variants.reserve(kVariants);
    for (int i = 0; i < kVariants; ++i) {
      variants.push_back(MakeBatch(ShapeOf(sequences, 1), i, gpu_).attention);
    }
    const Tensor qkv = qkv_.Rows(0, count), out = out_.Rows(0, count);
    const double seconds = SecondsPerCall(kVariants, [&](int64_t i) {
      const auto variant = static_cast<size_t>(i);
      ops_.PagedAttention(qkv, kv_[variant % 2], variants[variant], heads_, AttentionOut(out));
    });
    Add({.name = "decode attention",
         .shape = fmt::format("B={} context {}", count, context),
         .seconds = seconds,
         .bytes = AttentionBytes(count * context, count),
         .flops = Product({4, query_width_, count, context})});
  }

  /// `out` as rows of query_width_, which is hidden_ in every preset.
  Tensor AttentionOut(const Tensor& out) const {
    SHOAL_CHECK(query_width_ == hidden_, "heads of {} together, hidden size {}", query_width_,
                hidden_);
    return out;
  }

  void PrefillAttention() {
    const auto [count, length] = scale_.prefill_attention;
    const int64_t tokens = count * length;
    const AttentionMeta meta =
        MakeBatch(ShapeOf(scale_.prefill_attention, length), 0, gpu_).attention;
    const double seconds = SecondsPerCall(2, [&](int64_t i) {
      ops_.PagedAttention(qkv_.Rows(0, tokens), kv_[static_cast<size_t>(i)], meta, heads_,
                          AttentionOut(out_.Rows(0, tokens)));
    });
    Add({.name = "prefill attention",
         .shape = fmt::format("{} x {}", count, length),
         .seconds = seconds,
         .bytes = AttentionBytes(tokens, tokens),
         .flops = Product({2, query_width_, count, length, length + 1})});
  }

  void RopeAndCombine(int64_t tokens) {
    // A token of each sequence, or a whole prompt.
    const bool is_decode = tokens <= std::ranges::max(scale_.decode_tokens);
    const Sequences sequences = is_decode ? Sequences{.count = tokens, .context = 1}
                                          : Sequences{.count = 1, .context = tokens};
    const AttentionMeta meta = MakeBatch(ShapeOf(sequences, sequences.context), 0, gpu_).attention;
    const Tensor table = gpu_.Random(DType::kFloat32, {sequences.context, heads_.head_dim / 2, 2});
    const double rope = SecondsPerCall(8, [&](int64_t i) {
      ops_.RopeAndWriteKv(qkv_.Rows(0, tokens), table, meta, heads_,
                          kv_[static_cast<size_t>(i % 2)]);
    });
    Add({.name = "rope + kv write",
         .shape = Tokens(tokens),
         .seconds = rope,
         .bytes = Product({kElementBytes, 2, tokens, qkv_width_})});
    const double combine = SecondsPerRoutedLayer([&](const RoutedLayer& layer) {
      ops_.Combine(rows_.Rows(0, tokens), Rows(layer.routing, tokens), residual_.Rows(0, tokens),
                   layer.weights->input_norm, out_.Rows(0, tokens));
    });
    Add({.name = "combine + norm",
         .shape = Tokens(tokens),
         .seconds = combine,
         .bytes = Product({kElementBytes, tokens, hidden_, config_.num_routes() + 3})});
  }

  void Sampling() {
    constexpr float kLogitDeviation = 3;  // as spread as a trained model's
    const int64_t rows = scale_.sampling_rows;
    Sample("sample greedy", rows, {.temperature = 0}, kLogitDeviation);
    Sample("sample top-p", rows, {.temperature = 1, .top_p = 0.95f}, kLogitDeviation);
    Sample("sample top-p", 1, {.temperature = 1, .top_p = 0.95f}, kLogitDeviation);
    Sample("sample top-k top-p", rows, {.temperature = 1, .top_k = 40, .top_p = 0.95f},
           kLogitDeviation);
  }

  /// Other logits in each call, out of more than the cache holds.
  void Sample(const char* name, int64_t num_rows, SamplingRow params, float deviation) {
    constexpr int64_t kSets = 8;
    if (sampled_logits_.empty()) {
      sampled_logits_ = gpu_.Random(DType::kFloat32,
                                    {kSets * scale_.sampling_rows, config_.vocab_size}, deviation);
    }
    std::vector<SamplingRow> rows(static_cast<size_t>(num_rows), params);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].seed = i;
      rows[i].slot = static_cast<int32_t>(i);
      rows[i].position = 1;
    }
    SamplingInputs inputs;
    inputs.history = gpu_.Allocate(DType::kInt32, {num_rows, 2});
    inputs.rows = gpu_.Allocate(DType::kByte, {num_rows * int64_t{sizeof(SamplingRow)}});
    gpu_.device().CopyFromHost(rows.data(), inputs.rows);
    const Tensor out = gpu_.Allocate(DType::kByte, {num_rows * int64_t{sizeof(SampledRow)}});
    const double seconds = SecondsPerCall(kSets, [&](int64_t i) {
      ops_.Sample(sampled_logits_.Rows(i * scale_.sampling_rows, num_rows), inputs, out);
    });
    Add({.name = name,
         .shape = fmt::format("{} rows", num_rows),
         .seconds = seconds,
         .bytes = Product({sizeof(float), num_rows, config_.vocab_size})});
  }

  const Scale& scale_;
  Gpu& gpu_;
  Ops& ops_;
  Report& report_;
  const ModelConfig config_;
  const ModelWeights weights_;
  const int64_t hidden_;
  const AttentionShape heads_;
  const int64_t query_width_;
  const int64_t qkv_width_;
  std::vector<RoutedLayer> layers_;
  Tensor normed_, residual_, delta_, out_;  // [max_tokens, hidden_size]
  Tensor qkv_;                              // [max_tokens, qkv_width]
  Tensor rows_;                             // [max_tokens, num_routes, hidden_size]
  Tensor logits_;                           // [rows, vocab_size] float32
  Tensor sampled_logits_;                   // [several times sampling_rows, vocab_size] float32
  std::vector<Tensor> kv_;
};

}  // namespace

ModelWeights MakeModel(const ModelConfig& config, Gpu& gpu) {
  const auto placement = ExpertPlacement::Create(config, 1, 0);
  SHOAL_CHECK(placement.ok(), "{}", placement.status().ToString());
  int shown = 0;
  const auto progress = [&](int64_t done_bytes, int64_t total_bytes) {
    const int tenths = static_cast<int>(10 * done_bytes / std::max<int64_t>(total_bytes, 1));
    if (tenths <= shown) return;
    shown = tenths;
    fmt::print(stderr, "random weights {} %\n", 10 * tenths);
  };
  absl::StatusOr<ModelWeights> weights =
      MakeRandomWeights(config, {.seed = 1}, DType::kBFloat16, *placement, gpu.backend(), progress);
  if (!weights.ok()) {
    fmt::print(stderr, "gpu_bench: {}\n", weights.status().ToString());
    std::exit(1);
  }
  return *std::move(weights);
}

void MeasureKernels(const Scale& scale, Gpu& gpu, Report& report) {
  KernelBench(scale, gpu, report).Run();
}

}  // namespace shoal::bench
