#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "engine/engine.h"

namespace shoal {
namespace {

using testing::HasSubstr;

absl::Status Validate(const std::function<void(EngineConfig&)>& change) {
  EngineConfig config;
  config.model_directory = "m";
  change(config);
  return config.Validate();
}

TEST(EngineConfig, DefaultsAreGood) {
  EXPECT_TRUE(Validate([](auto&) {}).ok());
}

TEST(EngineConfig, NamesTheFieldItsValueAndItsRange) {
  using Change = std::function<void(EngineConfig&)>;
  const std::vector<std::pair<const char*, Change>> cases = {
      {"model_directory", [](auto& config) { config.model_directory = ""; }},
      {"dtype is \"int3\", expected", [](auto& config) { config.dtype = "int3"; }},
      {"device is \"abacus\"", [](auto& config) { config.device = "abacus"; }},
      {"threads is -1, expected 0 to", [](auto& config) { config.threads = -1; }},
      {"expert_parallel is 0, expected 1 to 64", [](auto& config) { config.expert_parallel = 0; }},
      {"expert_parallel is 65", [](auto& config) { config.expert_parallel = 65; }},
      {"num_redundant_experts is -1", [](auto& config) { config.num_redundant_experts = -1; }},
      {"max_num_seqs is 0", [](auto& config) { config.max_num_seqs = 0; }},
      {"max_num_batched_tokens is 0", [](auto& config) { config.max_num_batched_tokens = 0; }},
      {"long_prefill_token_threshold is -1",
       [](auto& config) { config.long_prefill_token_threshold = -1; }},
      {"max_num_queued_requests is 0", [](auto& config) { config.max_num_queued_requests = 0; }},
      {"max_num_queued_tokens is 0", [](auto& config) { config.max_num_queued_tokens = 0; }},
      {"priority_step_seconds is 0", [](auto& config) { config.priority_step_seconds = 0; }},
      {"schedule_conservativeness is 10.5, expected 0 to 10",
       [](auto& config) { config.schedule_conservativeness = 10.5; }},
      {"schedule_conservativeness is nan",
       [](auto& config) { config.schedule_conservativeness = NAN; }},
      {"num_speculative_tokens is 65", [](auto& config) { config.num_speculative_tokens = 65; }},
      {"prompt_lookup_min is 0", [](auto& config) { config.prompt_lookup_min = 0; }},
      {"prompt_lookup_max is 4, expected 5 to 64",
       [](auto& config) { config.prompt_lookup_min = 5; }},
      {"block_size is 0", [](auto& config) { config.block_size = 0; }},
      {"kv_cache_memory_bytes is -1", [](auto& config) { config.kv_cache_memory_bytes = -1; }},
  };
  for (const auto& [message, change] : cases) {
    const absl::Status status = Validate(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace shoal
