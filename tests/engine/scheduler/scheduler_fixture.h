// A scheduler with its pools and a device without maths, for tests.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "tests/engine/scheduler/context_model.h"

namespace shoal {

using Tokens = std::vector<int32_t>;

inline Tokens Prompt(int32_t size, int32_t first = 0) {
  Tokens tokens;
  for (int32_t i = 0; i < size; ++i) tokens.push_back((first + i) % ContextModel::kVocabSize);
  return tokens;
}

inline Tokens TokensOf(Request& request) {
  Tokens tokens;
  for (const TokenOutput& output : request.stream().tokens()) tokens.push_back(output.token_id);
  return tokens;
}

struct SchedulerFixture {
  struct Options {
    int32_t num_ranks = 1;
    int32_t num_blocks = 64;  // of each rank
    int32_t block_size = 4;
    int32_t max_num_seqs = 16;
    int32_t max_num_batched_tokens = 64;
    int32_t long_prefill_token_threshold = 1 << 20;
    bool enable_prefix_caching = true;
    Clock::duration priority_step = std::chrono::seconds(10);
    bool ahead = false;  // schedule a step before the one before it is updated
    double conservativeness = 1;
    int32_t num_speculative_tokens = 0;
  };

  explicit SchedulerFixture(const Options& options)
      : options(options),
        pools(MakePools(options)),
        scheduler({.max_num_seqs = options.max_num_seqs,
                   .max_num_batched_tokens = options.max_num_batched_tokens,
                   .long_prefill_token_threshold = options.long_prefill_token_threshold,
                   .priority_step = options.priority_step,
                   .schedule_conservativeness = options.conservativeness,
                   .num_speculative_tokens = options.num_speculative_tokens,
                   .prompt_lookup_min = 1,
                   .prompt_lookup_max = 3,
                   .vocab_size = ContextModel::kVocabSize},
                  pools),
        model(options.num_ranks, options.num_blocks, options.block_size, options.max_num_seqs) {}

  static std::vector<BlockPool> MakePools(const Options& options) {
    std::vector<BlockPool> pools;
    for (int32_t rank = 0; rank < options.num_ranks; ++rank) {
      pools.emplace_back(options.num_blocks, options.block_size, options.enable_prefix_caching);
    }
    return pools;
  }

  static std::shared_ptr<Request> MakeRequest(Tokens prompt, SamplingParams sampling,
                                              SchedulingParams scheduling = {}) {
    auto request = std::make_shared<Request>("r", std::move(prompt), std::move(sampling),
                                             std::move(scheduling));
    request->ReserveStream();
    return request;
  }

  std::shared_ptr<Request> Add(Tokens prompt, SamplingParams sampling,
                               SchedulingParams scheduling = {}) {
    auto request = MakeRequest(std::move(prompt), std::move(sampling), std::move(scheduling));
    scheduler.Add({request});
    return request;
  }

  /// Schedules and runs a step, and updates the scheduler with the oldest one if another is in
  /// flight or must not be. Returns the tokens of each sequence of the step, rank by rank.
  std::vector<int32_t> Step() {
    step = scheduler.Schedule();
    std::vector<int32_t> num_tokens;
    for (const ScheduledBatch& batch : step.ranks) {
      for (const ScheduledSequence& sequence : batch.sequences) {
        num_tokens.push_back(sequence.num_tokens);
      }
    }
    if (!step.empty()) results.push_back(model.Run(step));
    if (results.size() > (options.ahead && !step.empty() ? 1u : 0u)) {
      scheduler.Update(results.front());
      results.pop_front();
    }
    return num_tokens;
  }

  void RunToEnd() {
    for (int i = 0; !scheduler.idle(); ++i) {
      ASSERT_LT(i, 100'000) << "no progress";
      Step();
    }
  }

  int32_t num_free() const {
    int32_t count = 0;
    for (const BlockPool& pool : pools) count += pool.num_free();
    return count;
  }

  const Options options;
  std::vector<BlockPool> pools;
  Scheduler scheduler;
  ContextModel model;
  ScheduledStep step;  // the last one
  std::deque<StepResult> results;
};

inline Tokens TokensWhenAlone(const Tokens& prompt, const SamplingParams& sampling) {
  SchedulerFixture fixture({.num_blocks = 1000});
  const auto request = fixture.Add(prompt, sampling);
  fixture.RunToEnd();
  return TokensOf(*request);
}

}  // namespace shoal
