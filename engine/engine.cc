#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "engine/execution/worker.h"

namespace shoal {
namespace {

/// The model's length, longer if its positions are scaled.
int64_t LongestContext(const ModelConfig& model) {
  return static_cast<int64_t>(static_cast<double>(model.max_position_embeddings) *
                              model.rope_scaling.factor);
}

/// The config against the model it is for.
absl::Status CheckAgainstModel(const EngineConfig& config, const ModelConfig& model) {
  if (config.max_model_len > LongestContext(model)) {
    return absl::InvalidArgumentError(
        fmt::format("max_model_len is {}, the model's context has {} tokens", config.max_model_len,
                    LongestContext(model)));
  }
  if (config.vocab_limit > model.vocab_size) {
    return absl::InvalidArgumentError(
        fmt::format("the tokenizer has {} tokens, the model's vocab_size is {}", config.vocab_limit,
                    model.vocab_size));
  }
  return absl::OkStatus();
}

/// float16 is computed as bfloat16.
DType ChooseDType(const EngineConfig& config, const ModelConfig& model) {
  if (config.dtype == "auto") {
    return model.torch_dtype == DType::kFloat32 ? DType::kFloat32 : DType::kBFloat16;
  }
  return config.dtype == "float32" ? DType::kFloat32 : DType::kBFloat16;
}

/// NaN is in no range.
absl::Status CheckRange(const char* field, double value, double min, double max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected {} to {}", field, value, min, max));
}

absl::Status CheckSampling(const SamplingParams& sampling) {
  RETURN_IF_ERROR(CheckRange("temperature", sampling.temperature, 0, 2));
  RETURN_IF_ERROR(CheckRange("top_k", sampling.top_k, 0, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckRange("top_p", sampling.top_p, std::numeric_limits<float>::denorm_min(), 1));
  RETURN_IF_ERROR(CheckRange("min_p", sampling.min_p, 0, 1));
  RETURN_IF_ERROR(CheckRange("logprobs", sampling.logprobs, -1, kMaxTopLogprobs));
  return CheckRange("prompt_logprobs", sampling.prompt_logprobs, -1, kMaxTopLogprobs);
}

absl::StatusOr<std::unique_ptr<Worker>> StartWorker(
    const EngineConfig& config, const ModelConfig& model, int32_t max_model_len,
    const std::function<void(const LoadStatus&)>& on_progress) {
  const WorkerConfig worker = {
      .model_directory = config.model_directory,
      .num_threads = config.threads,
      .runner = {.model = model,
                 .dtype = ChooseDType(config, model),
                 .max_num_batched_tokens = config.max_num_batched_tokens,
                 .vocab_limit = config.vocab_limit,
                 .kv_cache = {.block_size = config.block_size,
                              .max_model_len = max_model_len,
                              .max_num_seqs = config.max_num_seqs,
                              .memory_bytes = config.kv_cache_memory_bytes}}};
  return Worker::Start(worker, [&on_progress](int64_t done_bytes, int64_t total_bytes) {
    const double total = static_cast<double>(std::max<int64_t>(total_bytes, 1));
    on_progress({"loading weights", static_cast<double>(done_bytes) / total});
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    const EngineConfig& config, std::function<void(const LoadStatus&)> on_progress) {
  on_progress({"starting", 0});
  RETURN_IF_ERROR(config.Validate());
  ASSIGN_OR_RETURN(const ModelConfig model, ReadModelConfig(config.model_directory));
  RETURN_IF_ERROR(CheckAgainstModel(config, model));
  const auto max_model_len = static_cast<int32_t>(
      config.max_model_len > 0 ? config.max_model_len : model.max_position_embeddings);
  ASSIGN_OR_RETURN(auto worker, StartWorker(config, model, max_model_len, on_progress));
  std::unique_ptr<Engine> engine(new Engine(config, model, max_model_len, std::move(worker)));
  on_progress({"ready", 1});
  return engine;
}

Engine::Engine(const EngineConfig& config, const ModelConfig& model, int32_t max_model_len,
               std::unique_ptr<Worker> worker)
    : config_(config),
      model_(model),
      max_model_len_(max_model_len),
      worker_(std::move(worker)),
      block_pool_(worker_->num_kv_blocks(), config.block_size, config.enable_prefix_caching),
      scheduler_({config.max_num_seqs, config.max_num_batched_tokens}, &block_pool_) {
  stats_.blocks = block_pool_.stats();
  thread_ = std::thread([this] { Run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    AbortAll(absl::UnavailableError("the engine has stopped"));
    stopping_ = true;
  }
  work_.notify_one();
  thread_.join();
}

absl::Status Engine::Submit(std::shared_ptr<Request> request) {
  RETURN_IF_ERROR(CheckRequest(*request));
  request->ReserveStream();
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(refusal_);
    const int64_t num_waiting = stats_.scheduler.num_waiting + std::ssize(inbox_);
    if (num_waiting >= config_.max_num_queued_requests) {
      return absl::ResourceExhaustedError(fmt::format(
          "{} requests wait already, as many as max_num_queued_requests allows", num_waiting));
    }
    inbox_.push_back(std::move(request));
  }
  work_.notify_one();
  return absl::OkStatus();
}

absl::Status Engine::CheckRequest(const Request& request) const {
  const std::vector<int32_t>& prompt = request.prompt_token_ids();
  const SamplingParams& sampling = request.sampling();
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  const int64_t vocab_size = config_.vocab_limit > 0 ? config_.vocab_limit : model_.vocab_size;
  for (const int32_t token_id : prompt) {
    if (token_id >= 0 && token_id < vocab_size) continue;
    return absl::InvalidArgumentError(
        fmt::format("the prompt holds token id {}, expected 0 to {}", token_id, vocab_size - 1));
  }
  RETURN_IF_ERROR(CheckSampling(sampling));
  const int32_t min_tokens = sampling.prompt_logprobs >= 0 ? 0 : 1;
  if (sampling.max_tokens < min_tokens) {
    return absl::InvalidArgumentError(
        fmt::format("max_tokens is {}, expected at least {}", sampling.max_tokens, min_tokens));
  }
  // Start-up has made sure that the KV cache holds any sequence of this length.
  if (std::ssize(prompt) + sampling.max_tokens > max_model_len_) {
    return absl::InvalidArgumentError(fmt::format(
        "the prompt has {} tokens and max_tokens is {}, together more than the {} that a "
        "sequence may have",
        prompt.size(), sampling.max_tokens, max_model_len_));
  }
  return absl::OkStatus();
}

void Engine::Drain(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  const auto is_idle = [this] { return IsIdle(); };
  if (refusal_.ok()) refusal_ = absl::UnavailableError("the server is shutting down");
  if (all_done_.wait_until(lock, deadline, is_idle)) return;
  AbortAll(absl::UnavailableError("the server has shut down before the request was done"));
  work_.notify_one();
  all_done_.wait(lock, is_idle);
}

EngineStats Engine::Stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.scheduler.num_waiting += static_cast<int32_t>(inbox_.size());
  return stats;
}

absl::Status Engine::health() const {
  const std::lock_guard lock(mutex_);
  return health_;
}

bool Engine::IsIdle() const {
  return inbox_.empty() && stats_.scheduler.num_waiting + stats_.scheduler.num_running == 0;
}

/// Makes the engine thread end every request before its next step, and refuses new ones.
void Engine::AbortAll(const absl::Status& why) {
  abort_ = why;
  if (refusal_.ok()) refusal_ = why;
}

void Engine::Run() {
  while (TakeInbox()) Step();
}

/// Waits while there is nothing to do. False: the thread is to end.
bool Engine::TakeInbox() {
  std::vector<std::shared_ptr<Request>> requests;
  absl::Status abort;
  bool stopping;
  {
    std::unique_lock lock(mutex_);
    work_.wait(lock, [this] {
      return !scheduler_.idle() || !inbox_.empty() || !abort_.ok() || stopping_;
    });
    requests.swap(inbox_);
    stats_.scheduler.num_waiting += static_cast<int32_t>(requests.size());
    abort = std::exchange(abort_, absl::OkStatus());
    stopping = stopping_;
  }
  for (std::shared_ptr<Request>& request : requests) scheduler_.Add(std::move(request));
  if (!abort.ok()) scheduler_.AbortAll(abort);
  return !stopping;
}

/// Schedules, runs and updates one batch, if there is anything to run.
void Engine::Step() {
  ScheduledBatch batch = scheduler_.Schedule();
  {
    const std::lock_guard lock(mutex_);
    PublishQueues();  // what has just been admitted waits no more
    stats_.last_step_tokens = batch.num_tokens();
  }
  if (batch.empty()) return;
  worker_->Post(std::move(batch));
  const StepResult result = worker_->Take();
  const StepTokens step = result.status.ok() ? scheduler_.Update(result) : StepTokens();
  const std::lock_guard lock(mutex_);
  if (!result.status.ok()) {
    health_ = absl::UnavailableError(
        fmt::format("the device failed: {}", std::string(result.status.message())));
    AbortAll(health_);
  }
  ++stats_.num_steps;
  stats_.prompt_tokens += step.prompt;
  stats_.generation_tokens += step.generation;
  PublishQueues();
}

void Engine::PublishQueues() {
  stats_.scheduler = scheduler_.stats();
  stats_.blocks = block_pool_.stats();
  if (IsIdle()) all_done_.notify_all();
}

}  // namespace shoal
