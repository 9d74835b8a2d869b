// shoal make-checkpoint: a checkpoint with random weights, in the exact Hugging Face layout.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/random_checkpoint.h"

namespace shoal {

struct MakeCheckpointConfig {
  std::string preset;               // of PresetModelConfig; or
  std::string config_path;          // a config.json
  std::string tokenizer_directory;  // empty: the project's own tokenizer
  std::string dtype;                // "bfloat16" or "float32"; empty: the configuration's
  uint64_t seed = 0;
  bool no_weights = false;  // only what says the model's shape, for load_format dummy
  std::string output;       // directory
};

/// Writes weights (if wanted), config.json and tokenizer. A preset takes BOS and EOS from the
/// tokenizer; a config.json must agree with it. INVALID_ARGUMENT names the field.
absl::Status MakeCheckpoint(const MakeCheckpointConfig& config, const LoadProgress& progress);

/// The command: shows progress and says what was written.
absl::Status RunMakeCheckpoint(const MakeCheckpointConfig& config);

}  // namespace shoal
