#include "engine/engine.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <ranges>
#include <span>
#include <utility>

#include "engine/execution/rank_group.h"
#include "kernels/backends/backend_factory.h"

namespace shoal {
namespace {

/// The model's length, longer if its positions are scaled.
int64_t LongestContext(const ModelConfig& model) {
  return static_cast<int64_t>(static_cast<double>(model.max_position_embeddings) *
                              model.rope_scaling.factor);
}

/// The config against the model it is for.
absl::Status CheckAgainstModel(const EngineConfig& config, const ModelConfig& model) {
  if (model.n_routed_experts > 0 && config.expert_parallel > model.n_routed_experts) {
    return absl::InvalidArgumentError(
        fmt::format("expert_parallel is {}, expected 1 to {}, the model's n_routed_experts",
                    config.expert_parallel, model.n_routed_experts));
  }
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

/// float16 is computed as bfloat16, and so is float32 on a GPU.
DType ChooseDType(const EngineConfig& config, const ModelConfig& model, bool gpu) {
  if (config.dtype == "auto") {
    return model.torch_dtype == DType::kFloat32 && !gpu ? DType::kFloat32 : DType::kBFloat16;
  }
  return config.dtype == "float32" ? DType::kFloat32 : DType::kBFloat16;
}

/// NaN is in no range.
absl::Status CheckRange(const char* field, double value, double min, double max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected {} to {}", field, value, min, max));
}

absl::Status CheckTokenIds(const char* field, int64_t vocab_size, auto token_ids) {
  for (const int32_t token_id : token_ids) {
    if (token_id >= 0 && token_id < vocab_size) continue;
    return absl::InvalidArgumentError(
        fmt::format("{} holds token id {}, expected 0 to {}", field, token_id, vocab_size - 1));
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const SamplingParams& sampling, int64_t vocab_size) {
  constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
  RETURN_IF_ERROR(CheckRange("temperature", sampling.temperature, 0, 2));
  RETURN_IF_ERROR(CheckRange("top_k", sampling.top_k, 0, std::numeric_limits<int32_t>::max()));
  RETURN_IF_ERROR(CheckRange("top_p", sampling.top_p, kSmallest, 1));
  RETURN_IF_ERROR(CheckRange("min_p", sampling.min_p, 0, 1));
  RETURN_IF_ERROR(CheckRange("typical_p", sampling.typical_p, kSmallest, 1));
  RETURN_IF_ERROR(CheckRange("presence_penalty", sampling.presence_penalty, -2, 2));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", sampling.frequency_penalty, -2, 2));
  RETURN_IF_ERROR(CheckRange("repetition_penalty", sampling.repetition_penalty, kSmallest, 10));
  RETURN_IF_ERROR(CheckRange("min_tokens", sampling.min_tokens, 0, sampling.max_tokens));
  RETURN_IF_ERROR(CheckRange("the number of stop_token_ids",
                             static_cast<double>(sampling.stop_token_ids.size()), 0,
                             SamplingParams::kMaxStopTokenIds));
  RETURN_IF_ERROR(CheckRange("the number of logit_bias entries",
                             static_cast<double>(sampling.logit_bias.size()), 0,
                             SamplingParams::kMaxLogitBiases));
  RETURN_IF_ERROR(CheckTokenIds("logit_bias", vocab_size,
                                sampling.logit_bias | std::views::transform(&LogitBias::token_id)));
  for (const LogitBias& bias : sampling.logit_bias) {
    if (bias.bias < std::numeric_limits<float>::infinity()) continue;  // NaN is not, either
    return absl::InvalidArgumentError(fmt::format(
        "logit_bias of token {} is {}, expected a number or -inf", bias.token_id, bias.bias));
  }
  RETURN_IF_ERROR(CheckRange("logprobs", sampling.logprobs, -1, kMaxTopLogprobs));
  return CheckRange("prompt_logprobs", sampling.prompt_logprobs, -1, kMaxTopLogprobs);
}

absl::StatusOr<BackendFactory> FindBackends(const EngineConfig& config) {
  return BackendFactory::Create({.device = config.device,
                                 .num_ranks = config.expert_parallel,
                                 .num_threads = config.threads,
                                 .gpu_memory_utilization = config.gpu_memory_utilization});
}

absl::StatusOr<std::unique_ptr<RankGroup>> StartRanks(
    const EngineConfig& config, const BackendFactory& backends, const ModelConfig& model,
    int32_t max_model_len, const std::function<void(const LoadStatus&)>& on_progress) {
  std::mutex mutex;  // the ranks plan at the same time
  const auto report_plan = [&](int rank, const MemoryPlan& plan) {
    const std::lock_guard lock(mutex);
    const std::string whose =
        config.expert_parallel > 1 ? fmt::format("rank {}: ", rank) : std::string();
    on_progress({"planning memory", 1, whose + Describe(plan)});
  };
  const WorkerConfig worker = {
      .model_directory = config.model_directory,
      .has_weights = config.load_format != "dummy",
      .num_ranks = config.expert_parallel,
      .num_redundant_experts = config.num_redundant_experts,
      .make_backend =
          [backends](int rank, std::unique_ptr<Communicator> communicator) {
            return backends.Make(rank, std::move(communicator));
          },
      .on_memory_plan = report_plan,
      .runner = {.model = model,
                 .dtype = ChooseDType(config, model, !backends.is_cpu()),
                 .max_num_batched_tokens = *config.max_num_batched_tokens,
                 .vocab_limit = config.vocab_limit,
                 .kv_cache = {.block_size = config.block_size,
                              .max_model_len = max_model_len,
                              .max_num_seqs = *config.max_num_seqs,
                              .memory_bytes = config.kv_cache_memory_bytes,
                              .exclusive_device = !backends.is_cpu()},
                 .enforce_eager = config.enforce_eager}};
  return RankGroup::Start(worker, [&on_progress](int64_t done_bytes, int64_t total_bytes) {
    const double total = static_cast<double>(std::max<int64_t>(total_bytes, 1));
    on_progress({"loading weights", static_cast<double>(done_bytes) / total});
  });
}

absl::Status DeviceFailed(const absl::Status& status) {
  return absl::UnavailableError(
      fmt::format("the device failed: {}", std::string(status.message())));
}

int64_t VocabSize(const EngineConfig& config, const ModelConfig& model) {
  return config.vocab_limit > 0 ? config.vocab_limit : model.vocab_size;
}

std::vector<BlockPool> MakeBlockPools(const EngineConfig& config, const Executor& executor) {
  std::vector<BlockPool> pools;
  for (const int32_t num_blocks : executor.num_kv_blocks()) {
    pools.emplace_back(num_blocks, config.block_size, config.enable_prefix_caching);
  }
  return pools;
}

SchedulerConfig MakeSchedulerConfig(const EngineConfig& config, const ModelConfig& model) {
  return {.max_num_seqs = *config.max_num_seqs,
          .max_num_batched_tokens = *config.max_num_batched_tokens,
          .long_prefill_token_threshold = config.long_prefill_token_threshold,
          .priority_step = std::chrono::seconds(config.priority_step_seconds),
          .schedule_conservativeness = config.schedule_conservativeness,
          .num_speculative_tokens = config.num_speculative_tokens,
          .prompt_lookup_min = config.prompt_lookup_min,
          .prompt_lookup_max = config.prompt_lookup_max,
          .vocab_size = VocabSize(config, model)};
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
  ASSIGN_OR_RETURN(const BackendFactory backends, FindBackends(config));
  const EngineConfig full_config = config.WithDefaults(!backends.is_cpu());
  ASSIGN_OR_RETURN(auto ranks,
                   StartRanks(full_config, backends, model, max_model_len, on_progress));
  std::unique_ptr<Engine> engine = Create(full_config, model, max_model_len, std::move(ranks));
  engine->device_ = backends.description();
  on_progress({"ready", 1});
  return engine;
}

std::unique_ptr<Engine> Engine::Create(const EngineConfig& config, const ModelConfig& model,
                                       int32_t max_model_len, std::unique_ptr<Executor> executor) {
  return std::unique_ptr<Engine>(new Engine(config, model, max_model_len, std::move(executor)));
}

Engine::Engine(const EngineConfig& config, const ModelConfig& model, int32_t max_model_len,
               std::unique_ptr<Executor> executor)
    : config_(config.WithDefaults(/*gpu=*/false)),
      model_(model),
      max_model_len_(max_model_len),
      executor_(std::move(executor)),
      block_pools_(MakeBlockPools(config, *executor_)),
      scheduler_(MakeSchedulerConfig(config_, model), block_pools_) {
  Publish();
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

absl::StatusOr<QueueSlot> Engine::Reserve(int num_requests) {
  if (num_requests > config_.max_num_queued_requests) {
    return absl::InvalidArgumentError(
        fmt::format("{} choices can never wait together: max_num_queued_requests is {}",
                    num_requests, config_.max_num_queued_requests));
  }
  const std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(refusal_);
  const int64_t num_queued = NumQueued();
  if (num_queued + num_requests > config_.max_num_queued_requests) {
    return absl::ResourceExhaustedError(
        fmt::format("{} requests wait already, and max_num_queued_requests is {}", num_queued,
                    config_.max_num_queued_requests));
  }
  num_reserved_ += num_requests;
  return QueueSlot(this, num_requests);
}

void Engine::GiveBack(int num_requests) {
  const std::lock_guard lock(mutex_);
  num_reserved_ -= num_requests;
}

QueueSlot& QueueSlot::operator=(QueueSlot&& other) noexcept {
  std::swap(engine_, other.engine_);
  std::swap(num_requests_, other.num_requests_);
  return *this;
}

QueueSlot::~QueueSlot() {
  if (engine_ != nullptr) engine_->GiveBack(num_requests_);
}

absl::Status Engine::Submit(QueueSlot slot,
                            std::vector<std::vector<std::shared_ptr<Request>>> calls) {
  int64_t num_requests = 0, num_tokens = 0;
  for (const auto& choices : calls) {
    for (const auto& request : choices) {
      SHOAL_CHECK(request->prompt_token_ids() == choices[0]->prompt_token_ids(),
                  "choices of one call have one prompt");
      RETURN_IF_ERROR(CheckRequest(*request));
      request->ReserveStream();
      num_tokens += std::ssize(request->prompt_token_ids());
    }
    num_requests += std::ssize(choices);
  }
  SHOAL_CHECK(slot.engine_ == this && slot.num_requests_ == num_requests,
              "a slot for {} requests is used for {}", slot.num_requests_, num_requests);
  {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(refusal_);
    const int64_t num_waiting = stats_.scheduler.num_waiting_tokens + num_inbox_tokens_;
    // What is long has its turn, too, if only it waits.
    if (num_waiting > 0 && num_waiting + num_tokens > config_.max_num_queued_tokens) {
      return absl::ResourceExhaustedError(
          fmt::format("{} tokens wait already, {} more would come, and max_num_queued_tokens is {}",
                      num_waiting, num_tokens, config_.max_num_queued_tokens));
    }
    num_inbox_requests_ += num_requests;
    num_inbox_tokens_ += num_tokens;
    std::ranges::move(calls, std::back_inserter(inbox_));
    num_reserved_ -= slot.num_requests_;
    slot.engine_ = nullptr;
  }
  work_.notify_one();
  return absl::OkStatus();
}

absl::Status Engine::Submit(std::shared_ptr<Request> request) {
  ASSIGN_OR_RETURN(QueueSlot slot, Reserve(1));
  return Submit(std::move(slot), {{std::move(request)}});
}

void Engine::ResetPrefixCache() {
  {
    const std::lock_guard lock(mutex_);
    reset_prefix_cache_ = true;
  }
  work_.notify_one();
}

absl::Status Engine::CheckRequest(const Request& request) const {
  const std::vector<int32_t>& prompt = request.prompt_token_ids();
  const SamplingParams& sampling = request.sampling();
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  const int64_t vocab_size = VocabSize(config_, model_);
  RETURN_IF_ERROR(CheckTokenIds("the prompt", vocab_size, std::span(prompt)));
  const int32_t fewest = sampling.prompt_logprobs >= 0 ? 0 : 1;
  if (sampling.max_tokens < fewest) {
    return absl::InvalidArgumentError(
        fmt::format("max_tokens is {}, expected at least {}", sampling.max_tokens, fewest));
  }
  RETURN_IF_ERROR(CheckSampling(sampling, vocab_size));
  if (request.scheduling().deadline <= Clock::now()) {
    return absl::DeadlineExceededError("the deadline passed before the request was queued");
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
  stats.scheduler.num_waiting += static_cast<int32_t>(num_inbox_requests_);
  stats.scheduler.num_waiting_tokens += num_inbox_tokens_;
  stats.num_reserved = num_reserved_;
  return stats;
}

double Engine::SecondsToDrain() const {
  const std::lock_guard lock(mutex_);
  if (stats_.requests_per_second <= 0) return 0;
  return static_cast<double>(NumQueued() + 1) / stats_.requests_per_second;
}

absl::Status Engine::health() const {
  const std::lock_guard lock(mutex_);
  return health_;
}

bool Engine::IsIdle() const {
  return inbox_.empty() && stats_.scheduler.num_waiting + stats_.scheduler.num_running == 0;
}

int64_t Engine::NumQueued() const {
  return stats_.scheduler.num_waiting + num_inbox_requests_ + num_reserved_;
}

/// Makes the engine thread end every request before its next step, and refuses new ones.
void Engine::AbortAll(const absl::Status& why) {
  abort_ = why;
  if (refusal_.ok()) refusal_ = why;
}

/// With async scheduling a step is always posted before the one before it is taken, so the device
/// has no pause; without, only when nothing is in flight.
void Engine::Run() {
  while (TakeInbox()) {
    const bool posted = PostStep();
    const int num_ahead = posted && *config_.async_scheduling ? 1 : 0;
    if (scheduler_.num_steps_in_flight() > num_ahead) TakeStep();
  }
}

/// Waits while there is nothing to do. False: the thread is to end.
bool Engine::TakeInbox() {
  std::vector<std::vector<std::shared_ptr<Request>>> calls;
  absl::Status abort;
  bool stopping, reset;
  {
    std::unique_lock lock(mutex_);
    work_.wait(lock, [this] {
      return !scheduler_.idle() || !inbox_.empty() || !abort_.ok() || stopping_ ||
             reset_prefix_cache_;
    });
    calls.swap(inbox_);
    stats_.scheduler.num_waiting += static_cast<int32_t>(std::exchange(num_inbox_requests_, 0));
    stats_.scheduler.num_waiting_tokens += std::exchange(num_inbox_tokens_, 0);
    abort = std::exchange(abort_, absl::OkStatus());
    reset = std::exchange(reset_prefix_cache_, false);
    stopping = stopping_;
  }
  for (auto& choices : calls) scheduler_.Add(std::move(choices));
  if (!abort.ok()) scheduler_.AbortAll(abort, /*forget_in_flight=*/false);
  if (reset) std::ranges::for_each(block_pools_, &BlockPool::ResetPrefixCache);
  return !stopping;
}

/// Schedules the next step and hands it over. False: there is nothing to run now.
bool Engine::PostStep() {
  ScheduledStep step = scheduler_.Schedule();
  const bool posted = !step.empty();
  if (posted) {
    in_flight_.push_back({Clock::now(), step.num_tokens()});
    executor_->Post(std::move(step));
  }
  const std::lock_guard lock(mutex_);
  Publish();  // what has just been admitted waits no more
  return posted;
}

/// Waits for the oldest step in flight and gives its tokens to their streams.
void Engine::TakeStep() {
  const StepResult result = executor_->Take();
  if (result.status.ok()) {
    scheduler_.Update(result);
  } else {
    scheduler_.AbortAll(DeviceFailed(result.status), /*forget_in_flight=*/true);
  }
  const Clock::time_point now = Clock::now();
  const Flight step = in_flight_.front();
  in_flight_.pop_front();
  const Clock::time_point begin = std::max(step.posted, last_step_end_);
  last_step_end_ = now;
  const std::lock_guard lock(mutex_);
  if (!result.status.ok()) {
    health_ = DeviceFailed(result.status);
    AbortAll(health_);
  }
  ++stats_.num_steps;
  stats_.step_seconds.Add(std::chrono::duration<double>(now - begin).count());
  stats_.step_tokens.Add(static_cast<double>(step.num_tokens));
  Publish();
}

/// Brings the snapshot up to date. Its dearer parts are renewed now and then, and when work ends.
void Engine::Publish() {
  stats_.scheduler = scheduler_.stats();
  stats_.blocks.clear();
  for (const BlockPool& pool : block_pools_) stats_.blocks.push_back(pool.stats());
  const Clock::time_point now = Clock::now();
  if (was_idle_) drain_rate_.Resume(now);
  was_idle_ = IsIdle();
  if (was_idle_) all_done_.notify_all();
  if (!was_idle_ && now < tenants_published_ + kTenantsInterval) return;
  tenants_published_ = now;
  stats_.tenants = scheduler_.Tenants();
  const double rate = drain_rate_.Update(now, stats_.scheduler.num_ended);
  stats_.requests_per_second = was_idle_ ? 0 : rate;
}

}  // namespace shoal
