// TokenizerDefinition: what tokenizer.json and tokenizer_config.json say, ready to use.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/pre_tokenizer.h"

namespace shoal {

struct TokenizerDefinition {
  std::vector<Token> tokens;
  std::optional<AddedTokens> added_tokens;
  std::optional<PreTokenizer> pre_tokenizer;
  std::optional<Bpe> bpe;  // looks into `tokens`
  int32_t bos_id = -1;     // -1: none
  int32_t eos_id = -1;     // -1: none
  bool add_bos = false;
  std::string chat_template;
};

/// Every part is set. INVALID_ARGUMENT naming file, field and what is supported. An empty
/// `tokenizer_config_json` stands for a file that is not there: no BOS, no EOS, no chat template.
absl::StatusOr<std::unique_ptr<const TokenizerDefinition>> ParseTokenizerDefinition(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json);

}  // namespace shoal
