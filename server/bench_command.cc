#include "server/bench_command.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "kernels/backends/backend_factory.h"
#include "server/bench_metrics.h"
#include "server/progress_line.h"
#include "server/served_model.h"

namespace shoal {
namespace {

constexpr int kWarmUpTokens = 4;

struct Memory {
  std::string device;  // BackendFactory::description()
  bool is_cpu = true;
  double bytes_per_second = 0;  // read and written, both counted
};

/// How fast the device copies buffers far larger than its caches. Takes and gives back memory.
absl::StatusOr<Memory> MeasureMemory(const EngineConfig& config) {
  constexpr int64_t kBlockBytes = int64_t{1} << 20, kMaxBlocks = 1024;
  constexpr int kMaxRounds = 10, kCopiesPerRound = 4;
  constexpr double kEnoughSeconds = 1;
  ASSIGN_OR_RETURN(
      const BackendFactory factory,
      BackendFactory::Create({.device = config.device, .num_threads = config.threads}));
  ASSIGN_OR_RETURN(const Backend backend, factory.Make(0, nullptr));
  Device& device = *backend.device;
  const int64_t half = std::min(kMaxBlocks, device.FreeBytes() / kBlockBytes / 4) / 2;
  if (half == 0) return absl::ResourceExhaustedError("the device has no memory left to copy");
  ASSIGN_OR_RETURN(const Tensor blocks,
                   device.Allocate(DType::kBFloat16, {2 * half, 2, 1, 1, kBlockBytes / 4}));
  ASSIGN_OR_RETURN(const Tensor device_copies,
                   device.Allocate(DType::kByte, {(2 * half - 1) * int64_t{sizeof(BlockCopy)}}));
  const auto upload = [&](const std::vector<BlockCopy>& copies) {
    const Tensor tensor = device_copies.Rows(0, std::ssize(copies) * int64_t{sizeof(BlockCopy)});
    device.CopyFromHost(copies.data(), tensor);
    return tensor;
  };
  // Zeros are copied faster than data, and pages that nobody wrote to are all the same one.
  std::vector<BlockCopy> from_first, to_second_half;
  for (int32_t block = 1; block < 2 * half; ++block) from_first.push_back({0, block});
  for (int32_t block = 0; block < half; ++block) {
    to_second_half.push_back({block, block + static_cast<int32_t>(half)});
  }
  backend.ops->FillNormal(blocks.Rows(0, 1), 0, 1);
  backend.ops->CopyBlocks(blocks, upload(from_first));
  RETURN_IF_ERROR(device.Synchronize());
  const Tensor copies = upload(to_second_half);
  double best_seconds = std::numeric_limits<double>::infinity(), all_seconds = 0;
  for (int round = 0; round < kMaxRounds && all_seconds < kEnoughSeconds; ++round) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < kCopiesPerRound; ++i) backend.ops->CopyBlocks(blocks, copies);
    RETURN_IF_ERROR(device.Synchronize());
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best_seconds = std::min(best_seconds, seconds);
    all_seconds += seconds;
  }
  const double bytes = kCopiesPerRound * 2.0 * static_cast<double>(half * kBlockBytes);
  return Memory{.device = factory.description(),
                .is_cpu = factory.is_cpu(),
                .bytes_per_second = bytes / best_seconds};
}

/// The requests of the benchmark, and how many of them have ended.
class Requests {
 public:
  Requests(const BenchConfig& config, int64_t vocab) : config_(config), random_(config.seed) {
    std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(vocab) - 1);
    for (int i = 0; i <= config.num_prompts; ++i) {
      std::vector<int32_t> prompt(static_cast<size_t>(config.input_len));
      for (int32_t& id : prompt) id = token(random_);
      prompts_.push_back(std::move(prompt));
    }
  }

  /// One request that is not counted, so that what is made at first use is there.
  absl::Status WarmUp(Engine& engine) {
    const int32_t tokens = std::min(config_.output_len, kWarmUpTokens);
    RETURN_IF_ERROR(Submit(engine, prompts_.back(), tokens));
    AwaitEnd(1, nullptr);
    const FinishInfo* finish = requests_.front()->stream().finish();
    absl::Status status = finish->status;
    requests_.clear();
    num_ended_ = 0;
    return status;
  }

  /// Sends all, each at its time, and waits until they have ended.
  absl::Status Run(Engine& engine) {
    ProgressLine line;
    std::exponential_distribution<double> gap(
        std::isinf(config_.request_rate) ? 1 : config_.request_rate);
    Clock::time_point due = Clock::now();
    for (int i = 0; i < config_.num_prompts; ++i) {
      std::this_thread::sleep_until(due);
      line.Update("requests", Fraction());
      RETURN_IF_ERROR(Submit(engine, prompts_[static_cast<size_t>(i)], config_.output_len));
      if (std::isinf(config_.request_rate)) continue;
      due +=
          std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random_)));
    }
    AwaitEnd(config_.num_prompts, &line);
    return absl::OkStatus();
  }

  std::vector<RequestTrace> Traces() const {
    std::vector<RequestTrace> traces;
    for (const auto& request : requests_) {
      const FinishInfo* finish = request->stream().finish();
      RequestTrace trace = {.num_input_tokens = std::ssize(request->prompt_token_ids()),
                            .sent = request->arrival(),
                            .first_scheduled = finish->first_scheduled,
                            .completed = finish->reason == FinishReason::kLength};
      for (const TokenOutput& token : request->stream().tokens())
        trace.tokens.push_back(token.time);
      traces.push_back(std::move(trace));
    }
    return traces;
  }

  /// Of the first request that failed.
  absl::Status status() const {
    for (const auto& request : requests_) {
      const FinishInfo* finish = request->stream().finish();
      if (finish->reason == FinishReason::kError) return finish->status;
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Submit(Engine& engine, const std::vector<int32_t>& prompt, int32_t max_tokens) {
    const SamplingParams sampling = {.seed = config_.seed + requests_.size(),
                                     .max_tokens = max_tokens};
    requests_.push_back(std::make_shared<Request>("bench", prompt, sampling));
    TokenStream& stream = requests_.back()->stream();
    stream.SetWake([this, &stream] {
      if (stream.finish() == nullptr) return;
      num_ended_.fetch_add(1);
      num_ended_.notify_one();
    });
    return engine.Submit(requests_.back());
  }

  void AwaitEnd(int64_t count, ProgressLine* line) {
    for (int64_t ended = num_ended_; ended < count; ended = num_ended_) {
      if (line != nullptr) line->Update("requests", Fraction());
      num_ended_.wait(ended);
    }
    if (line != nullptr) line->Update("requests", 1);
  }

  double Fraction() const {
    return static_cast<double>(num_ended_) / std::max(config_.num_prompts, 1);
  }

  const BenchConfig& config_;
  std::mt19937_64 random_;
  std::vector<std::vector<int32_t>> prompts_;  // the last one is for the warm-up
  std::vector<std::shared_ptr<Request>> requests_;
  std::atomic<int64_t> num_ended_ = 0;
};

/// What a step computes in; a GPU in bfloat16 alone.
DType ComputeType(const EngineConfig& config, const ModelConfig& model, bool is_cpu) {
  const bool is_float32 =
      is_cpu && (config.dtype == "float32" ||
                 (config.dtype == "auto" && model.torch_dtype == DType::kFloat32));
  return is_float32 ? DType::kFloat32 : DType::kBFloat16;
}

nlohmann::ordered_json ToJson(const BenchConfig& config, const BenchMetrics& metrics) {
  const std::string& directory = config.engine.model_directory;
  nlohmann::ordered_json json = {
      {"model_id", directory.empty() ? "tiny" : directory},
      {"num_prompts", config.num_prompts},
      {"input_len", config.input_len},
      {"output_len", config.output_len},
      {"request_rate", std::isinf(config.request_rate)
                           ? nlohmann::ordered_json("inf")
                           : nlohmann::ordered_json(config.request_rate)},
      {"seed", config.seed},
      {"duration", metrics.duration},
      {"completed", metrics.completed},
      {"failed", metrics.failed},
      {"total_input_tokens", metrics.total_input_tokens},
      {"total_output_tokens", metrics.total_output_tokens},
      {"request_throughput", metrics.request_throughput},
      {"output_throughput", metrics.output_throughput},
      {"total_token_throughput", metrics.total_token_throughput}};
  const auto add = [&](const std::string& name, const Distribution& values) {
    json["mean_" + name] = values.mean;
    json["median_" + name] = values.median;
    json["std_" + name] = values.std;
    json["p99_" + name] = values.p99;
  };
  add("ttft_ms", metrics.ttft_ms);
  add("tpot_ms", metrics.tpot_ms);
  add("itl_ms", metrics.itl_ms);
  add("e2el_ms", metrics.e2el_ms);
  return json;
}

void Print(const nlohmann::ordered_json& json) {
  for (const auto& [name, value] : json.items()) {
    const std::string text = value.is_number_float() ? fmt::format("{:.4g}", value.get<double>())
                             : value.is_string()     ? value.get<std::string>()
                                                     : value.dump();
    fmt::print("{:<36} {:>16}\n", name, text);
  }
}

absl::Status WriteFile(const std::string& text, const std::string& path, std::ios::openmode mode) {
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path, mode);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::InternalError(fmt::format("{}: cannot be written", path));
}

/// What can be known before minutes of loading.
absl::Status CheckBeforeLoading(const BenchConfig& config) {
  RETURN_IF_ERROR(WriteFile("", config.output_json, std::ios::app));
  ASSIGN_OR_RETURN(const ModelConfig model, ReadModelConfig(config.engine.model_directory));
  const int64_t max_model_len =
      config.engine.max_model_len > 0 ? config.engine.max_model_len : model.max_position_embeddings;
  if (int64_t{config.input_len} + config.output_len <= max_model_len) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("--input-len {} and --output-len {} are together more than the {} tokens that a "
                  "sequence may have",
                  config.input_len, config.output_len, max_model_len));
}

}  // namespace

absl::Status RunBench(const BenchConfig& given) {
  BenchConfig config = given;
  EngineConfig& engine_config = config.engine;
  ASSIGN_OR_RETURN(const auto default_model, ProvideDefaultModel(engine_config));
  RETURN_IF_ERROR(CheckBeforeLoading(config));
  engine_config.max_num_queued_requests =
      std::max(engine_config.max_num_queued_requests, config.num_prompts);
  engine_config.max_num_queued_tokens =
      std::max(engine_config.max_num_queued_tokens, int64_t{config.num_prompts} * config.input_len);
  // Before the engine takes the device's memory.
  ASSIGN_OR_RETURN(const Memory memory, MeasureMemory(engine_config));
  std::unique_ptr<Requests> requests;  // they outlive the engine, which wakes them
  std::unique_ptr<Engine> engine;
  {
    ProgressLine line;
    ASSIGN_OR_RETURN(engine, Engine::Create(engine_config, [&](const LoadStatus& status) {
                       line.Update(status.phase, status.fraction);
                     }));
  }
  const ModelConfig& model = engine->model_config();
  requests = std::make_unique<Requests>(config, model.vocab_size);
  RETURN_IF_ERROR(requests->WarmUp(*engine));
  RETURN_IF_ERROR(requests->Run(*engine));

  const std::vector<RequestTrace> traces = requests->Traces();
  nlohmann::ordered_json json = ToJson(given, BenchMetrics::Of(traces));
  const DecodeSteps steps =
      DecodeSteps::Of(traces, model, ComputeType(engine_config, model, memory.is_cpu));
  const std::optional<double> fraction = steps.FractionOfRoofline(memory.bytes_per_second);
  json["device"] = memory.device;
  json["memory_bytes_per_second"] = memory.bytes_per_second;
  json["decode_steps"] = steps.count;
  json["fraction_of_roofline"] = fraction ? nlohmann::ordered_json(*fraction) : nullptr;
  Print(json);
  RETURN_IF_ERROR(WriteFile(json.dump(2) + "\n", config.output_json, std::ios::trunc));
  return requests->status();
}

}  // namespace shoal
