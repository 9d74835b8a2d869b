// A request's tokens and logprobs are the same bits whatever happens around it. On the device that
// SHOAL_TEST_DEVICE names, by default the CPU; on another one with fewer calls and one rank.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/no_repeat.h"
#include "tests/engine/small_checkpoint.h"

namespace shoal {
namespace {

using Tokens = std::vector<int32_t>;
using Choices = std::vector<std::shared_ptr<Request>>;

constexpr int32_t kMaxModelLen = 192;
constexpr int32_t kMaxTokens = 64;
constexpr int64_t kBytesPerToken = 3 * 2 * 2 * 16 * 2;  // layers, K and V, heads, head_dim, bytes

std::string TestDevice() {
  const char* device = std::getenv("SHOAL_TEST_DEVICE");
  return device == nullptr ? "cpu" : device;
}

bool OnCpu() { return TestDevice() == "cpu"; }

int NumCalls() {
  if (!OnCpu()) return 16;  // an emulator is slow
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
  return 40;  // the sanitizers look for other faults, and are slow
#endif
#endif
  return 160;
}

/// What one call asks for: choices of one prompt, each with sampling of its own.
struct CallSpec {
  Tokens prompt;
  std::vector<SamplingParams> choices;
  SchedulingParams scheduling;
};

SamplingParams RandomSampling(std::mt19937& random) {
  const auto one_in = [&random](uint32_t n) { return random() % n == 0; };
  SamplingParams sampling;
  sampling.temperature = one_in(3) ? 0 : one_in(2) ? 1.0f : 0.7f;
  sampling.top_k = one_in(4) ? 20 : 0;
  sampling.top_p = one_in(4) ? 0.9f : 1;
  sampling.min_p = one_in(6) ? 0.05f : 0;
  sampling.typical_p = one_in(6) ? 0.8f : 1;
  sampling.presence_penalty = one_in(5) ? 0.6f : 0;
  sampling.frequency_penalty = one_in(5) ? 0.4f : 0;
  sampling.repetition_penalty = one_in(5) ? 1.3f : 1;
  sampling.seed = random();
  sampling.max_tokens = 1 + static_cast<int32_t>(random() % kMaxTokens);
  sampling.min_tokens = one_in(6) ? sampling.max_tokens / 2 : 0;
  if (one_in(6)) {
    const auto token = static_cast<int32_t>(random() % 200);
    sampling.logit_bias = {{token, 3.0f},
                           {(token + 1) % 200, -std::numeric_limits<float>::infinity()}};
  }
  if (one_in(10)) sampling.mask = std::make_shared<NoRepeat>();
  // Most end early, so that the scheduler counts on it.
  for (int i = one_in(3) ? 0 : 6; i > 0; --i) {
    sampling.stop_token_ids.push_back(static_cast<int32_t>(random() % 200));
  }
  sampling.logprobs = 2;
  return sampling;
}

/// Prompts of a few families that share prefixes; one choice, or some; any sampling.
std::vector<CallSpec> MakeWorkload(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<CallSpec> calls(static_cast<size_t>(NumCalls()));
  for (CallSpec& call : calls) {
    std::mt19937 family(random() % 5);
    const size_t length = 1 + random() % 100;
    while (call.prompt.size() < length) {
      // Now and then a token of its own; from there on the prompt is another.
      call.prompt.push_back(static_cast<int32_t>((random() % 40 == 0 ? random() : family()) % 200));
    }
    const int num_choices = random() % 5 == 0 ? 3 : 1;
    for (int i = 0; i < num_choices; ++i) call.choices.push_back(RandomSampling(random));
    if (num_choices == 1 && random() % 8 == 0) call.choices[0].prompt_logprobs = 1;
    call.scheduling = {.priority = static_cast<int32_t>(random() % 3) - 1,
                       .tenant = fmt::to_string(random() % 3),
                       .cache_domain = random() % 10 == 0 ? "other" : ""};
  }
  return calls;
}

/// All that a client sees of a choice.
struct Seen {
  Tokens tokens;
  std::vector<float> logprobs;  // of the tokens and their alternatives, then of the prompt
  FinishReason reason = FinishReason::kError;

  bool operator==(const Seen&) const = default;
};

Seen Look(Request& request) {
  Seen seen;
  seen.reason = request.stream().finish()->reason;
  for (const TokenOutput& output : request.stream().tokens()) {
    seen.tokens.push_back(output.token_id);
    seen.logprobs.push_back(output.logprob);
    for (const TokenLogprob& top : output.top_logprobs) seen.logprobs.push_back(top.logprob);
  }
  for (const TokenOutput& output : request.stream().prompt()) {
    seen.logprobs.push_back(output.logprob);
  }
  return seen;
}

EngineConfig BaseConfig() {
  EngineConfig config;
  config.model_directory = SmallCheckpoint();
  config.device = TestDevice();
  config.threads = 1;
  config.max_model_len = kMaxModelLen;
  config.max_num_seqs = 24;
  config.max_num_queued_requests = 2000;
  config.enable_prefix_caching = false;
  config.async_scheduling = false;
  return config;
}

/// Submits the calls and waits for all of them: one after the other, or all at once.
class Runner {
 public:
  explicit Runner(const EngineConfig& config) {
    auto engine = Engine::Create(config, [](const LoadStatus&) {});
    SHOAL_CHECK(engine.ok(), "{}", engine.status().ToString());
    engine_ = *std::move(engine);
  }

  std::vector<Seen> Run(const std::vector<CallSpec>& calls, bool alone) {
    std::vector<Choices> requests;
    for (const CallSpec& call : calls) {
      if (alone) {
        for (const SamplingParams& sampling : call.choices) {
          requests.push_back(Submit({call.prompt, {sampling}, call.scheduling}));
          WaitForAll();
        }
      } else {
        requests.push_back(Submit(call));
      }
    }
    WaitForAll();
    std::vector<Seen> seen;
    for (const Choices& choices : requests) {
      for (const auto& request : choices) seen.push_back(Look(*request));
    }
    return seen;
  }

  EngineStats stats() const { return engine_->Stats(); }

 private:
  Choices Submit(const CallSpec& call) {
    Choices choices;
    for (const SamplingParams& sampling : call.choices) {
      auto request = std::make_shared<Request>("r", call.prompt, sampling, call.scheduling);
      TokenStream& stream = request->stream();
      stream.SetWake([this, &stream] {
        if (stream.finish() == nullptr) return;
        num_running_.fetch_sub(1);
        num_running_.notify_one();
      });
      choices.push_back(std::move(request));
    }
    num_running_.fetch_add(std::ssize(choices));
    absl::StatusOr<QueueSlot> slot = engine_->Reserve(static_cast<int>(choices.size()));
    SHOAL_CHECK(slot.ok(), "{}", slot.status().ToString());
    const absl::Status status = engine_->Submit(*std::move(slot), {choices});
    SHOAL_CHECK(status.ok(), "{}", status.ToString());
    return choices;
  }

  void WaitForAll() {
    for (int64_t n = num_running_; n > 0; n = num_running_) num_running_.wait(n);
  }

  std::atomic<int64_t> num_running_ = 0;
  std::unique_ptr<Engine> engine_;
};

struct Variant {
  std::string name;
  EngineConfig config;
};

/// The cache holds little more than one long sequence, and the scheduler thinks of now only: many
/// are preempted.
void ForcePreemption(EngineConfig& config) {
  config.schedule_conservativeness = 0;
  const int64_t num_tokens = kMaxModelLen + 3 * config.block_size;
  config.kv_cache_memory_bytes = num_tokens * kBytesPerToken * config.expert_parallel;
}

/// Each axis alone, then all of them mixed.
std::vector<Variant> MakeVariants() {
  std::vector<Variant> variants;
  const auto add = [&variants](std::string name, auto change) {
    variants.push_back({std::move(name), BaseConfig()});
    change(variants.back().config);
  };
  add("batch", [](EngineConfig&) {});
  for (const int32_t chunk : {1, 7, 64, 4096}) {
    add(fmt::format("chunk {}", chunk),
        [chunk](EngineConfig& config) { config.max_num_batched_tokens = chunk; });
  }
  for (const int32_t size : {8, 16, 32}) {
    add(fmt::format("block size {}", size),
        [size](EngineConfig& config) { config.block_size = size; });
  }
  add("prefix cache", [](EngineConfig& config) { config.enable_prefix_caching = true; });
  add("preemption", [](EngineConfig& config) {
    config.block_size = 8;
    ForcePreemption(config);
  });
  add("one step ahead", [](EngineConfig& config) { config.async_scheduling = true; });
  add("speculation", [](EngineConfig& config) {
    config.num_speculative_tokens = 4;
    config.prompt_lookup_min = 1;
  });
  if (OnCpu()) {
    for (const int ranks : {2, 4, 8}) {
      add(fmt::format("{} ranks", ranks),
          [ranks](EngineConfig& config) { config.expert_parallel = ranks; });
    }
    add("2 threads", [](EngineConfig& config) { config.threads = 2; });
  } else {
    add("no graphs", [](EngineConfig& config) { config.enforce_eager = true; });
  }
  std::mt19937 random(1);
  for (int i = 0; i < (OnCpu() ? 8 : 2); ++i) {
    add(fmt::format("mixed {}", i), [&random](EngineConfig& config) {
      config.max_num_batched_tokens = std::array{5, 7, 64, 512}[random() % 4];
      config.long_prefill_token_threshold = static_cast<int32_t>(random() % 30);
      config.block_size = std::array{8, 16, 32}[random() % 3];
      config.enable_prefix_caching = random() % 4 > 0;
      config.async_scheduling = random() % 4 > 0;
      config.num_speculative_tokens = static_cast<int32_t>(random() % 2) * 3;
      config.prompt_lookup_min = 1;
      if (OnCpu()) config.expert_parallel = std::array{1, 2, 4, 8}[random() % 4];
      config.num_redundant_experts =
          config.expert_parallel > 1 ? static_cast<int>(random() % 4) : 0;
      config.threads = 1 + static_cast<int>(random() % 2);
      if (random() % 2 == 0) ForcePreemption(config);
    });
  }
  return variants;
}

TEST(Invariance, EveryRequestGetsTheBitsThatItGetsAlone) {
  const std::vector<CallSpec> calls = MakeWorkload(1);
  const std::vector<Seen> alone = Runner(BaseConfig()).Run(calls, /*alone=*/true);
  size_t num_tokens = 0, num_logprobs = 0;
  for (const Seen& seen : alone) {
    num_tokens += seen.tokens.size();
    num_logprobs += seen.logprobs.size();
  }
  fmt::print(
      "{} requests of {} calls, {} tokens, {} logprobs\n{:<16} {:>6} {:>12} {:>8} {:>9} {:>7}\n",
      alone.size(), calls.size(), num_tokens, num_logprobs, "variant", "differ", "preemptions",
      "cached", "accepted", "steps");
  for (const Variant& variant : MakeVariants()) {
    Runner runner(variant.config);
    const std::vector<Seen> together = runner.Run(calls, /*alone=*/false);
    ASSERT_EQ(together.size(), alone.size());
    size_t num_different = 0;
    for (size_t i = 0; i < alone.size(); ++i) num_different += together[i] == alone[i] ? 0 : 1;
    EXPECT_EQ(num_different, 0u) << variant.name;
    const EngineStats stats = runner.stats();
    fmt::print("{:<16} {:>6} {:>12} {:>8} {:>9} {:>7}\n", variant.name, num_different,
               stats.scheduler.num_preemptions, stats.AllBlocks().prefix_hits_tokens,
               stats.scheduler.accepted_tokens, stats.num_steps);
    if (variant.name == "preemption") EXPECT_GT(stats.scheduler.num_preemptions, 0);
    if (variant.name == "prefix cache") EXPECT_GT(stats.AllBlocks().prefix_hits_tokens, 0);
    if (variant.name == "speculation") EXPECT_GT(stats.scheduler.accepted_tokens, 0);
  }
}

}  // namespace
}  // namespace shoal
