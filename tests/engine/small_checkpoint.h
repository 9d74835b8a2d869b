// A checkpoint with random weights, small enough for tests that run many steps.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "engine/model/random_checkpoint.h"

namespace shoal {

/// 16B's structure: a dense layer, then routed and shared experts; grouped key and value heads
/// besides.
inline ModelConfig SmallModel() {
  return {.vocab_size = 200,
          .hidden_size = 64,
          .intermediate_size = 96,
          .moe_intermediate_size = 32,
          .num_hidden_layers = 3,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .n_routed_experts = 8,
          .n_shared_experts = 1,
          .num_experts_per_tok = 3,
          .first_k_dense_replace = 1,
          .max_position_embeddings = 4096,
          .bos_token_id = 0,
          .eos_token_id = 1,
          .torch_dtype = DType::kBFloat16,
          .initializer_range = 0.15};
}

/// The directory of SmallModel()'s checkpoint, written once per process and removed at its end.
inline const std::string& SmallCheckpoint() {
  struct Directory {
    Directory()
        : path(std::filesystem::temp_directory_path() /
               fmt::format("shoal_small_checkpoint_{}", getpid())) {
      const absl::Status status =
          WriteRandomCheckpoint(SmallModel(), 1, int64_t{1} << 30, path, [](int64_t, int64_t) {});
      SHOAL_CHECK(status.ok(), "{}", status.ToString());
    }
    ~Directory() { std::filesystem::remove_all(path); }
    const std::string path;
  };
  static const Directory directory;
  return directory.path;
}

}  // namespace shoal
