#include "server/tokenize_command.h"

#include <nlohmann/json.hpp>

#include "server/embedded_tokenizer.h"
#include "tokenizer/tokenizer.h"

namespace shoal {
namespace {

/// In quotes, on one line; bytes that are no UTF-8 by themselves show as U+FFFD.
std::string Quoted(std::string_view piece) {
  return nlohmann::json(piece).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

absl::Status RunTokenize(const TokenizeConfig& config) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   config.model_directory.empty()
                       ? Tokenizer::FromJson(EmbeddedTokenizerJson(), EmbeddedTokenizerConfigJson())
                       : Tokenizer::Load(config.model_directory));
  for (const int32_t id : config.decode_ids) {
    if (id < 0 || id >= tokenizer->vocab_size()) {
      return absl::InvalidArgumentError(
          fmt::format("--decode: {} is not an id from 0 to {}", id, tokenizer->vocab_size() - 1));
    }
  }
  if (!config.decode_ids.empty()) {
    fmt::print("{}\n", tokenizer->Decode(config.decode_ids, /*skip_special_tokens=*/false));
    return absl::OkStatus();
  }
  for (const int32_t id : tokenizer->Encode(config.text, Tokenizer::SpecialText::kAsToken)) {
    fmt::print("{}\t{}\n", id, Quoted(tokenizer->TokenBytes(id)));
  }
  return absl::OkStatus();
}

}  // namespace shoal
