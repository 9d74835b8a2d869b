#include "engine/engine.h"
#include "kernels/backends/backend_factory.h"

namespace shoal {
namespace {

absl::Status CheckRange(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, expected {} to {}", field, value, min, max));
}

}  // namespace

absl::Status EngineConfig::Validate() const {
  constexpr int64_t kMaxTokens = 1 << 24;
  if (model_directory.empty()) {
    return absl::InvalidArgumentError(
        "model_directory is empty, expected a checkpoint's directory");
  }
  if (dtype != "auto" && dtype != "bfloat16" && dtype != "float32") {
    return absl::InvalidArgumentError(
        fmt::format("dtype is \"{}\", expected auto, bfloat16 or float32", dtype));
  }
  if (load_format != "auto" && load_format != "dummy") {
    return absl::InvalidArgumentError(
        fmt::format("load_format is \"{}\", expected auto or dummy", load_format));
  }
  RETURN_IF_ERROR(DeviceName::Parse(device).status());
  // Written so that NaN fails, here and below.
  if (!(gpu_memory_utilization > 0 && gpu_memory_utilization <= 1)) {
    return absl::InvalidArgumentError(
        fmt::format("gpu_memory_utilization is {}, expected above 0 to 1", gpu_memory_utilization));
  }
  RETURN_IF_ERROR(CheckRange("threads", threads, 0, 1024));
  RETURN_IF_ERROR(CheckRange("expert_parallel", expert_parallel, 1, 64));
  RETURN_IF_ERROR(CheckRange("num_redundant_experts", num_redundant_experts, 0, 1 << 16));
  RETURN_IF_ERROR(CheckRange("max_model_len", max_model_len, 0, kMaxTokens));
  RETURN_IF_ERROR(CheckRange("max_num_seqs", max_num_seqs.value_or(1), 1, 4096));
  RETURN_IF_ERROR(
      CheckRange("max_num_batched_tokens", max_num_batched_tokens.value_or(1), 1, 65536));
  RETURN_IF_ERROR(
      CheckRange("long_prefill_token_threshold", long_prefill_token_threshold, 0, 65536));
  RETURN_IF_ERROR(CheckRange("max_num_queued_requests", max_num_queued_requests, 1, 1 << 20));
  RETURN_IF_ERROR(CheckRange("max_num_queued_tokens", max_num_queued_tokens, 1, int64_t{1} << 40));
  RETURN_IF_ERROR(CheckRange("priority_step_seconds", priority_step_seconds, 1, 86400));
  if (!(schedule_conservativeness >= 0 && schedule_conservativeness <= 10)) {
    return absl::InvalidArgumentError(fmt::format(
        "schedule_conservativeness is {}, expected 0 to 10", schedule_conservativeness));
  }
  RETURN_IF_ERROR(CheckRange("num_speculative_tokens", num_speculative_tokens, 0, 64));
  RETURN_IF_ERROR(CheckRange("prompt_lookup_min", prompt_lookup_min, 1, 64));
  RETURN_IF_ERROR(CheckRange("prompt_lookup_max", prompt_lookup_max, prompt_lookup_min, 64));
  RETURN_IF_ERROR(CheckRange("block_size", block_size, 1, 1024));
  RETURN_IF_ERROR(CheckRange("kv_cache_memory_bytes", kv_cache_memory_bytes, 0, int64_t{1} << 50));
  return CheckRange("vocab_limit", vocab_limit, 0, kMaxTokens);
}

EngineConfig EngineConfig::WithDefaults(bool gpu) const {
  EngineConfig config = *this;
  config.max_num_seqs = max_num_seqs.value_or(gpu ? 256 : 64);
  config.max_num_batched_tokens = max_num_batched_tokens.value_or(gpu ? 8192 : 512);
  config.async_scheduling = async_scheduling.value_or(gpu);
  return config;
}

}  // namespace shoal
