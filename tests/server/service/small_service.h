// A GenerationService over a small random model and the project's own tokenizer.
#pragma once

#include <filesystem>
#include <memory>

#include "engine/model/random_checkpoint.h"
#include "server/service/generation_service.h"
#include "tests/tokenizer/deployed_tokenizer.h"

namespace shoal {

/// 16B's structure over the deployed tokenizer's vocabulary. Its text is noise, but varied noise.
inline ModelConfig SmallTextModel() {
  ModelConfig config;
  config.vocab_size = DeployedTokenizer().vocab_size();
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.moe_intermediate_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 4;
  config.n_routed_experts = 8;
  config.n_shared_experts = 1;
  config.num_experts_per_tok = 2;
  config.first_k_dense_replace = 1;
  config.max_position_embeddings = 8192;
  config.bos_token_id = DeployedTokenizer().bos_id();
  config.eos_token_id = DeployedTokenizer().eos_id();
  config.initializer_range = 0.15;
  return config;
}

/// Everything behind a front end, for tests.
class SmallService {
 public:
  explicit SmallService(GenerationObserver* observer = nullptr, EngineConfig config = {},
                        const GenerationService::Options& options = {}) {
    const std::string directory =
        std::filesystem::temp_directory_path() / fmt::format("shoal_small_service_{}", getpid());
    auto status = WriteRandomCheckpoint(SmallTextModel(), 1, int64_t{1} << 30, directory,
                                        [](int64_t, int64_t) {});
    SHOAL_CHECK(status.ok(), "{}", status.ToString());
    config.model_directory = directory;
    config.threads = 1;
    config.kv_cache_memory_bytes = 32 << 20;
    auto engine = Engine::Create(config, [](const LoadStatus&) {});
    SHOAL_CHECK(engine.ok(), "{}", engine.status().ToString());
    std::filesystem::remove_all(directory);
    engine_ = *std::move(engine);
    auto chat_template = ChatTemplate::Parse(DeployedTokenizer().chat_template());
    SHOAL_CHECK(chat_template.ok(), "{}", chat_template.status().ToString());
    chat_template_ = *std::move(chat_template);
    service_ = std::make_unique<GenerationService>(engine_.get(), &DeployedTokenizer(),
                                                   chat_template_.get(), observer, options);
  }

  GenerationService* operator->() { return service_.get(); }
  GenerationService& operator*() { return *service_; }

 private:
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ChatTemplate> chat_template_;
  std::unique_ptr<GenerationService> service_;
};

}  // namespace shoal
