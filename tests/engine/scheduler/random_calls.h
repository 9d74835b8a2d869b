// Random calls on a scheduler of random options.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "tests/engine/scheduler/scheduler_fixture.h"

namespace shoal {

/// What one round is like.
struct RoundOptions {
  SchedulerFixture::Options scheduler;
  int32_t max_length = 0;  // of prompt and output together
  int32_t max_choices = 1;
  int32_t num_tenants = 1;
  size_t max_live = 1;
  int max_ahead = 0;  // steps in flight when another is scheduled
  bool has_deadlines = false;
  bool has_poison = false;
};

/// Random numbers, with the few questions that a test asks.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int32_t Below(int32_t end) {
    return static_cast<int32_t>(engine_() % static_cast<uint32_t>(end));
  }
  int32_t From(int32_t first, int32_t last) { return first + Below(last - first + 1); }
  bool OneIn(int32_t n) { return Below(n) == 0; }
  template <size_t N>
  int32_t OneOf(const int32_t (&values)[N]) {
    return values[Below(static_cast<int32_t>(N))];
  }

 private:
  std::mt19937 engine_;
};

inline RoundOptions RandomOptions(Random& random) {
  RoundOptions options;
  options.max_length = random.From(12, 60);
  options.max_choices = random.From(1, 4);
  options.num_tenants = random.From(1, 4);
  options.max_live = static_cast<size_t>(random.From(2, 24));
  options.max_ahead = random.Below(3);
  options.has_deadlines = random.OneIn(3);
  options.has_poison = random.OneIn(3);
  SchedulerFixture::Options& scheduler = options.scheduler;
  scheduler.num_ranks = random.OneOf({1, 1, 2, 4});
  scheduler.block_size = random.OneOf({1, 2, 3, 4, 8});
  const int32_t num_needed = (options.max_length + scheduler.block_size - 1) / scheduler.block_size;
  scheduler.num_blocks = num_needed * random.OneOf({2, 2, 3, 4, 8, 16}) / 2;
  scheduler.max_num_seqs = random.From(1, 10);
  scheduler.max_num_batched_tokens = random.OneOf({1, 2, 5, 16, 64});
  scheduler.long_prefill_token_threshold = random.OneOf({0, 1, 6, 1 << 20});
  scheduler.enable_prefix_caching = !random.OneIn(3);
  scheduler.priority_step = std::chrono::microseconds(random.OneOf({0, 20, 1'000'000}));
  scheduler.conservativeness = random.OneIn(2) ? 0 : random.Below(11) / 10.0;
  scheduler.num_speculative_tokens = random.OneOf({0, 0, 2, 4});
  return options;
}

/// Allows a third of the tokens, another one each time, and nothing after a while.
class ThirdMask final : public TokenMask {
 public:
  bool Allow(std::span<const int32_t> generated, std::span<int32_t> allowed) override {
    std::ranges::fill(allowed, 0);
    for (int32_t id = 0; id < ContextModel::kVocabSize; ++id) {
      if ((id + std::ssize(generated)) % 3 == 0) allowed[id / 32] |= int32_t{1} << (id % 32);
    }
    return generated.size() < 12;
  }
};

/// Makes calls.
class Caller {
 public:
  static constexpr int32_t kPoison = ContextModel::kVocabSize - 1;

  Caller(const RoundOptions& options, Random& random) : options_(options), random_(random) {}

  /// The choices of one call.
  std::vector<std::shared_ptr<Request>> Call(uint64_t first_seed) {
    const Tokens prompt = Prompt();
    SamplingParams sampling = Sampling(options_.max_length - static_cast<int32_t>(prompt.size()));
    const SchedulingParams scheduling = Scheduling();
    std::vector<std::shared_ptr<Request>> choices;
    for (int32_t i = random_.From(1, options_.max_choices); i > 0; --i) {
      sampling.seed = first_seed++;
      choices.push_back(SchedulerFixture::MakeRequest(prompt, sampling, scheduling));
    }
    return choices;
  }

 private:
  /// Of one of a few families, which share prefixes and repeat themselves.
  Tokens Prompt() {
    const int32_t longest = random_.From(1, options_.max_length - 1);
    Tokens prompt(static_cast<size_t>(random_.From(1, longest)));
    const int32_t family = random_.Below(3);
    for (size_t i = 0; i < prompt.size(); ++i) {
      prompt[i] = family * 10 + static_cast<int32_t>(i * i % 7);
    }
    if (random_.OneIn(2)) prompt.back() = random_.Below(kPoison);
    if (options_.has_poison && random_.OneIn(10)) {
      prompt[static_cast<size_t>(random_.Below(static_cast<int32_t>(prompt.size())))] = kPoison;
    }
    return prompt;
  }

  SamplingParams Sampling(int32_t max_tokens) {
    SamplingParams sampling = {.max_tokens = random_.From(1, max_tokens)};
    if (random_.OneIn(4)) sampling.presence_penalty = 1;
    if (random_.OneIn(2)) sampling.stop_token_ids = {random_.Below(ContextModel::kVocabSize), -7};
    if (random_.OneIn(4)) sampling.min_tokens = random_.From(0, sampling.max_tokens);
    if (random_.OneIn(8)) sampling.logit_bias = {{random_.Below(3), -INFINITY}};
    if (random_.OneIn(10)) sampling.mask = std::make_shared<ThirdMask>();
    if (random_.OneIn(3)) sampling.logprobs = random_.Below(3);
    if (random_.OneIn(8)) {
      sampling.prompt_logprobs = random_.Below(3);
      if (random_.OneIn(3)) sampling.max_tokens = sampling.min_tokens = 0;
    }
    return sampling;
  }

  SchedulingParams Scheduling() {
    SchedulingParams scheduling = {.priority = random_.From(-1, 1),
                                   .tenant = std::to_string(random_.Below(options_.num_tenants)),
                                   .cache_domain = std::to_string(random_.OneOf({0, 0, 1}))};
    if (options_.has_deadlines && random_.OneIn(4)) {
      scheduling.deadline = Clock::now() + std::chrono::microseconds(random_.From(-20, 200));
    }
    return scheduling;
  }

  const RoundOptions& options_;
  Random& random_;
};

}  // namespace shoal
