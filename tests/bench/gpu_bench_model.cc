#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "engine/model/deepseek_moe.h"
#include "engine/model/roofline.h"
#include "tests/bench/gpu_bench_batch.h"
#include "tests/bench/gpu_bench_commands.h"

namespace shoal::bench {
namespace {

/// A step on the device, with what chooses the tokens.
struct Step {
  BatchShape shape;
  ForwardBatch batch;
  Tensor logits_rows;  // [num_sequences] int32
  SamplingInputs sampling;
  Tensor sampled;  // [num_sequences * sizeof(SampledRow)] bytes

  int64_t num_sequences() const { return shape.sequences.count; }
  int64_t num_tokens() const { return shape.sequences.count * shape.query_len; }
};

class ModelBench {
 public:
  ModelBench(const Scale& scale, Gpu& gpu, Report& report)
      : scale_(scale),
        gpu_(gpu),
        report_(report),
        config_(PresetModelConfig(scale.preset).value()) {
    int64_t max_rows = 0, max_context = 0;
    for (const auto* steps : {&scale.decode_steps, &scale.prefill_steps}) {
      for (const Sequences& step : *steps) {
        max_rows = std::max(max_rows, step.count);
        max_context = std::max(max_context, step.context);
      }
    }
    const DeepseekMoe::Limits limits = {.max_tokens = scale.max_tokens(),
                                        .max_positions = max_context,
                                        .max_logits_rows = max_rows,
                                        .vocab_limit = config_.vocab_size};
    auto model = DeepseekMoe::Create(config_, MakeModel(config_, gpu), DType::kBFloat16, limits,
                                     &gpu.backend());
    SHOAL_CHECK(model.ok(), "{}", model.status().ToString());
    model_ = *std::move(model);
    AllocateKv();
  }

  void Run() {
    for (const Sequences& step : scale_.decode_steps) Decode(step);
    HostBubble();
    for (const Sequences& step : scale_.prefill_steps) Prefill(step);
  }

 private:
  int64_t BlocksOf(const Sequences& step) const {
    return step.count * ((step.context + scale_.block_size - 1) / scale_.block_size);
  }

  /// For the largest step, or as much as there is room for.
  void AllocateKv() {
    constexpr double kShareOfFree = 0.9;  // the rest is for the ops' working memory
    const AttentionShape heads = config_.attention_shape();
    const int64_t block_bytes = int64_t{4} * heads.num_kv_heads * heads.head_dim *
                                scale_.block_size * config_.num_hidden_layers;
    for (const auto* steps : {&scale_.decode_steps, &scale_.prefill_steps}) {
      for (const Sequences& step : *steps) num_blocks_ = std::max(num_blocks_, BlocksOf(step));
    }
    num_blocks_ = std::min(
        num_blocks_,
        static_cast<int64_t>(kShareOfFree * static_cast<double>(gpu_.device().FreeBytes())) /
            block_bytes);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      kv_.push_back(gpu_.Random(DType::kBFloat16, {num_blocks_, 2, heads.num_kv_heads,
                                                   scale_.block_size, heads.head_dim}));
    }
  }

  Step MakeStep(const Sequences& sequences, int64_t query_len) {
    Step step;
    step.shape = {.sequences = sequences,
                  .query_len = query_len,
                  .block_size = scale_.block_size,
                  .num_blocks = num_blocks_,
                  .vocab = config_.vocab_size};
    step.batch = MakeBatch(step.shape, 0, gpu_);
    step.logits_rows = MakeLogitsRows(step.shape, gpu_);
    const int64_t count = sequences.count;
    std::vector<SamplingRow> rows(static_cast<size_t>(count),
                                  {.temperature = 0.8f, .top_p = 0.95f});
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].seed = i;
      rows[i].slot = static_cast<int32_t>(i);
      rows[i].position = 1;
    }
    step.sampling.history = gpu_.Allocate(DType::kInt32, {count, 2});
    step.sampling.rows = gpu_.Allocate(DType::kByte, {count * int64_t{sizeof(SamplingRow)}});
    gpu_.device().CopyFromHost(rows.data(), step.sampling.rows);
    step.sampled = gpu_.Allocate(DType::kByte, {count * int64_t{sizeof(SampledRow)}});
    return step;
  }

  void Enqueue(const Step& step) {
    model_->Forward(step.batch, kv_);
    gpu_.ops().Sample(model_->Logits(step.logits_rows), step.sampling, step.sampled);
  }

  /// Routed experts that the step's tokens go to, of all layers together.
  double CountRoutedExperts(const Step& step) {
    int64_t experts = 0;
    for (const std::vector<int32_t>& ids : gpu_.routing_probe().Routes([&] { Enqueue(step); })) {
      experts += CountExperts(ids, config_.n_routed_experts);
    }
    return static_cast<double>(experts);
  }

  /// A row with the work of the step; not yet with its time.
  Row RowOf(const char* name, const std::string& shape, const Step& step) {
    const auto [count, context] = step.shape.sequences;
    const bool is_prefill = step.shape.query_len > 1;
    const ForwardWork work = {
        .num_tokens = step.num_tokens(),
        .num_logits_rows = count,
        .num_cached_tokens = count * context,
        .num_attended = is_prefill ? count * context * (context + 1) / 2 : count * context,
        .num_experts = CountRoutedExperts(step)};
    return {.name = name,
            .shape = shape,
            .bytes = ForwardBytes(config_, DType::kBFloat16, work),
            .flops = ForwardFlops(config_, work),
            .target = TargetOf(scale_, name, shape),
            .more = {{"experts_of_all_layers", work.num_experts}}};
  }

  void AddStep(Row row, int64_t num_tokens) {
    row.more.emplace_back("tokens_per_second", static_cast<double>(num_tokens) / row.seconds);
    if (!scale_.has_targets()) return report_.Add(std::move(row));
    row.note = fmt::format("{:.0f} tokens/s", static_cast<double>(num_tokens) / row.seconds);
    report_.Add(std::move(row));
  }

  bool Fits(const char* name, const std::string& shape, const Sequences& step) {
    if (BlocksOf(step) <= num_blocks_) return true;
    report_.Add(
        {.name = name,
         .shape = shape,
         .note = fmt::format("skipped: its KV cache does not fit, {} blocks do", num_blocks_)});
    return false;
  }

  /// One token of each sequence, replayed as the engine replays it.
  void Decode(const Sequences& sequences) {
    constexpr const char* kName = "decode step";
    const std::string shape = fmt::format("B={} context {}", sequences.count, sequences.context);
    if (!Fits(kName, shape, sequences)) return;
    const Step step = MakeStep(sequences, 1);
    Row row = RowOf(kName, shape, step);
    const auto recording = gpu_.Record([&] { Enqueue(step); });
    row.seconds = gpu_.MedianSeconds(*recording);
    AddStep(std::move(row), step.num_tokens());
    report_.AddKernels(gpu_.TimeByKernel(*recording));
  }

  /// Whole prompts, launched kernel by kernel, as the engine does.
  void Prefill(const Sequences& sequences) {
    constexpr const char* kName = "prefill step";
    const std::string shape = fmt::format("{} x {}", sequences.count, sequences.context);
    if (!Fits(kName, shape, sequences)) return;
    const Step step = MakeStep(sequences, sequences.context);
    Row row = RowOf(kName, shape, step);
    const auto enqueue = [&] { Enqueue(step); };
    row.seconds = gpu_.MedianSeconds(enqueue);
    AddStep(std::move(row), step.num_tokens());
    report_.AddKernels(gpu_.TimeByKernel(*gpu_.Record(enqueue)));
  }

  /// How long the device waits for the host between decode steps, with one step in flight while the
  /// next is prepared: inputs go up, the step is replayed, tokens come down.
  void HostBubble() {
    using Clock = std::chrono::steady_clock;
    const int num_steps = scale_.has_targets() ? 50 : 2;
    const Step step = MakeStep(scale_.host_step, 1);
    const auto recording = gpu_.Record([&] { Enqueue(step); });
    const double device_seconds = gpu_.MedianSeconds(*recording);
    const std::vector<int32_t> inputs(
        static_cast<size_t>(step.batch.attention.block_tables.num_elements()));
    std::vector<SampledRow> sampled[2];
    for (auto& rows : sampled) rows.resize(static_cast<size_t>(step.num_sequences()));
    const Tensor scratch = gpu_.Allocate(DType::kInt32, {std::ssize(inputs)});
    std::optional<int64_t> last_mark;
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < num_steps; ++i) {
      gpu_.device().CopyFromHost(inputs.data(), scratch);
      Check(cudaGraphLaunch(recording->executable(), gpu_.stream()), "cudaGraphLaunch");
      gpu_.device().CopyToHost(step.sampled, sampled[i % 2].data());
      const int64_t mark = gpu_.device().Mark();
      if (last_mark) {
        const absl::Status status = gpu_.device().Wait(*last_mark);
        SHOAL_CHECK(status.ok(), "{}", status.ToString());
      }
      last_mark = mark;
    }
    gpu_.Synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count() / num_steps;
    report_.Add(
        {.name = "decode step with host",
         .shape = fmt::format("B={} context {}", scale_.host_step.count, scale_.host_step.context),
         .seconds = seconds,
         .more = {{"bubble_fraction", 1 - device_seconds / seconds}},
         .note =
             fmt::format("{:.1f} % of it the device waits", 100 * (1 - device_seconds / seconds))});
  }

  const Scale& scale_;
  Gpu& gpu_;
  Report& report_;
  const ModelConfig config_;
  std::unique_ptr<DeepseekMoe> model_;
  int64_t num_blocks_ = 0;
  std::vector<Tensor> kv_;  // one per layer
};

}  // namespace

void MeasureModel(const Scale& scale, Gpu& gpu, Report& report) {
  ModelBench(scale, gpu, report).Run();
}

}  // namespace shoal::bench
