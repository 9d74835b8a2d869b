#include "server/server_config.h"

#include <nlohmann/json.hpp>

namespace shoal {

std::string FormatServerConfig(const ServerConfig& config) {
  const EngineConfig& engine = config.engine;
  const std::vector<std::string> keys(config.http.api_keys.size(), kMaskedKey);
  nlohmann::ordered_json json = {
      {"model", engine.model_directory},
      {"served-model-name", config.served_model_names},
      {"host", config.http.host},
      {"port", config.http.port},
      {"api-key", keys},
      {"grpc-port", 0},
      {"load-format", engine.load_format},
      {"device", engine.device},
      {"gpu-memory-utilization", engine.gpu_memory_utilization},
      {"enforce-eager", engine.enforce_eager},
      {"dtype", engine.dtype},
      {"threads", engine.threads},
      {"expert-parallel", engine.expert_parallel},
      {"num-redundant-experts", engine.num_redundant_experts},
      {"max-model-len", engine.max_model_len},
      {"max-num-seqs", nullptr},
      {"max-num-batched-tokens", nullptr},
      {"long-prefill-token-threshold", engine.long_prefill_token_threshold},
      {"async-scheduling", nullptr},
      {"max-num-queued-requests", engine.max_num_queued_requests},
      {"max-num-queued-tokens", engine.max_num_queued_tokens},
      {"priority-step-seconds", engine.priority_step_seconds},
      {"schedule-conservativeness", engine.schedule_conservativeness},
      {"fair-share", config.fair_share},
      {"request-timeout-ms", config.request_timeout_ms},
      {"num-speculative-tokens", engine.num_speculative_tokens},
      {"prompt-lookup-min", engine.prompt_lookup_min},
      {"prompt-lookup-max", engine.prompt_lookup_max},
      {"block-size", engine.block_size},
      {"kv-cache-memory-bytes", engine.kv_cache_memory_bytes},
      {"enable-prefix-caching", engine.enable_prefix_caching},
      {"seed", nullptr},
      {"drain-timeout-seconds", config.drain_timeout_seconds},
  };
  const auto add = [&json](const char* name, const auto& value) {
    if (value) json[name] = *value;
  };
  add("max-num-seqs", engine.max_num_seqs);
  add("max-num-batched-tokens", engine.max_num_batched_tokens);
  add("async-scheduling", engine.async_scheduling);
  add("seed", config.seed);
  return json.dump(2);
}

}  // namespace shoal
