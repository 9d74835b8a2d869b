// shoal generate: one completion on the terminal, token by token.
#pragma once

#include <string>

#include "server/service/generation_service.h"

namespace shoal {

struct GenerateConfig {
  EngineConfig engine;  // without model_directory: the default model
  std::string prompt;
  bool chat = false;  // the prompt is a user's message, the chat template is applied
  GenerateCall call;  // all but the prompt
};

/// Prints the text on stdout as it comes, and the speed on stderr.
absl::Status RunGenerate(const GenerateConfig& config);

}  // namespace shoal
