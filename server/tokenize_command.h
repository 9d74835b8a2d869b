// shoal tokenize: text to token ids, and back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace shoal {

struct TokenizeConfig {
  std::string model_directory;  // empty: the project's own tokenizer
  std::string text;
  std::vector<int32_t> decode_ids;  // if any: decode these instead
};

/// Prints an id and its piece per line, or the text of the ids.
absl::Status RunTokenize(const TokenizeConfig& config);

}  // namespace shoal
