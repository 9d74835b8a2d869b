// What the engine itself costs: steps of a model without maths, beside a plain loop that only
// delivers the tokens.
//
//   engine_bench [num_sequences = 256] [num_steps = 4000]

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace shoal {
namespace {

constexpr int32_t kBlockSize = 16;
constexpr int32_t kPromptTokens = 32;
constexpr int32_t kWarmUpSteps = 200;

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Gives a token for each row at once. Runs on the engine thread, whose time it looks at.
class NullExecutor final : public Executor {
 public:
  /// `num_sequences`: steps of so many tokens are measured.
  NullExecutor(int32_t num_blocks, int64_t num_sequences, std::vector<double>* step_seconds)
      : num_blocks_(num_blocks), num_sequences_(num_sequences), step_seconds_(step_seconds) {}

  std::span<const int32_t> num_kv_blocks() const override { return {&num_blocks_, 1}; }

  void Post(ScheduledStep step) override {
    const double now = ThreadSeconds();
    const bool is_full = step.num_tokens() == num_sequences_;
    if (is_full && was_full_) step_seconds_->push_back(now - last_post_);
    was_full_ = is_full;
    num_rows_.push_back(step.ranks[0].sampling.size());
    last_post_ = ThreadSeconds();
  }

  StepResult Take() override {
    StepResult result;
    result.rows.resize(1);
    result.rows[0].resize(num_rows_.front());
    num_rows_.pop_front();
    for (SampledRow& row : result.rows[0]) row.token_id = 7;
    return result;
  }

 private:
  const int32_t num_blocks_;
  const int64_t num_sequences_;
  std::vector<double>* const step_seconds_;
  std::deque<size_t> num_rows_;
  double last_post_ = 0;
  bool was_full_ = false;
};

std::vector<std::shared_ptr<Request>> MakeRequests(int num_sequences, int32_t num_tokens) {
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < num_sequences; ++i) {
    const std::vector<int32_t> prompt(kPromptTokens, i % 100);
    requests.push_back(
        std::make_shared<Request>("r", prompt, SamplingParams{.max_tokens = num_tokens}));
  }
  return requests;
}

/// Seconds per step of doing nothing but to hand a token to each stream and to wake its reader.
double PlainLoopSeconds(int num_sequences, int32_t num_steps) {
  const auto requests = MakeRequests(num_sequences, num_steps);
  std::atomic<int64_t> wakes = 0;
  for (const auto& request : requests) {
    request->ReserveStream();
    request->stream().SetWake([&wakes] { wakes.fetch_add(1, std::memory_order_relaxed); });
  }
  std::vector<double> seconds;
  for (int32_t step = 0; step < num_steps; ++step) {
    const double begin = ThreadSeconds();
    for (const auto& request : requests) {
      request->stream().Append({.token_id = step});
      request->stream().Notify();
    }
    seconds.push_back(ThreadSeconds() - begin);
  }
  return Median(seconds);
}

struct EngineTimes {
  double step_seconds = 0;  // median, of the engine thread
  double tokens_per_second = 0;
};

EngineTimes RunEngine(EngineConfig config, int num_sequences, int32_t num_steps) {
  ModelConfig model;
  model.vocab_size = 1000;
  config.max_num_seqs = config.max_num_queued_requests = num_sequences;
  config.max_num_batched_tokens = std::max(8192, num_sequences);
  config.block_size = kBlockSize;
  const int32_t max_model_len = kPromptTokens + num_steps + kWarmUpSteps;
  const int32_t num_blocks = num_sequences * (max_model_len / kBlockSize + 1);
  std::vector<double> step_seconds;
  const auto engine =
      Engine::Create(config, model, max_model_len,
                     std::make_unique<NullExecutor>(num_blocks, num_sequences, &step_seconds));
  std::atomic<int64_t> num_ended = 0;
  const auto requests = MakeRequests(num_sequences, num_steps + kWarmUpSteps);
  for (const auto& request : requests) {
    TokenStream& stream = request->stream();
    stream.SetWake([&] {
      if (stream.finish() == nullptr) return;
      num_ended.fetch_add(1);
      num_ended.notify_one();
    });
  }
  const auto begin = std::chrono::steady_clock::now();
  for (const auto& request : requests) {
    const absl::Status status = engine->Submit(request);
    SHOAL_CHECK(status.ok(), "{}", status.ToString());
  }
  for (int64_t n = 0; n < num_sequences; n = num_ended) num_ended.wait(n);
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
  const double num_tokens = static_cast<double>(num_sequences) * (num_steps + kWarmUpSteps);
  if (std::ssize(step_seconds) > kWarmUpSteps) {
    step_seconds.erase(step_seconds.begin(), step_seconds.begin() + kWarmUpSteps);
  }
  return {Median(step_seconds), num_tokens / wall.count()};
}

void Report(const std::string& name, const EngineTimes& times, int num_sequences, double plain) {
  fmt::print("{:<28} {:8.1f} us/step {:8.3f} us/token {:10.0f} tokens/s  {:5.1f}x the plain loop\n",
             name, times.step_seconds * 1e6, times.step_seconds * 1e6 / num_sequences,
             times.tokens_per_second, times.step_seconds / plain);
}

int Main(int argc, char** argv) {
  const int num_sequences = argc > 1 ? std::atoi(argv[1]) : 256;
  const int32_t num_steps = argc > 2 ? std::atoi(argv[2]) : 4000;
  const double plain = PlainLoopSeconds(num_sequences, num_steps);
  fmt::print("{} sequences, median of {} steps; thread time of the engine\n", num_sequences,
             num_steps);
  fmt::print("{:<28} {:8.1f} us/step {:8.3f} us/token\n", "plain loop (ceiling)", plain * 1e6,
             plain * 1e6 / num_sequences);
  EngineConfig config;
  Report("one step ahead", RunEngine(config, num_sequences, num_steps), num_sequences, plain);
  config.async_scheduling = false;
  Report("step by step", RunEngine(config, num_sequences, num_steps), num_sequences, plain);
  const double few = RunEngine(config, 1, num_steps).step_seconds;
  const double many = RunEngine(config, num_sequences, num_steps).step_seconds;
  fmt::print("step by step: {:.1f} us with one sequence, and {:.3f} us for each more\n", few * 1e6,
             (many - few) * 1e6 / std::max(num_sequences - 1, 1));
  return 0;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) { return shoal::Main(argc, argv); }
