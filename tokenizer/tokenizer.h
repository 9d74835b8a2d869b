// Tokenizer: text <-> token ids, as described by Hugging Face's tokenizer.json (byte-level BPE).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace shoal {

struct TokenizerDefinition;

/// Immutable once loaded. Thread: any.
class Tokenizer {
 public:
  /// Whether the text of a special token (BOS, EOS) in the input becomes that token. Text that a
  /// client wrote into a chat message must not; what a chat template or a raw completion prompt
  /// says may.
  enum class SpecialText { kAsPlainText, kAsToken };

  /// Reads tokenizer.json and, for BOS, EOS and the chat template, tokenizer_config.json of
  /// `directory`, which may lack the latter. Errors name file, field and what is supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& directory);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      std::string_view tokenizer_json, std::string_view tokenizer_config_json);
  ~Tokenizer();

  /// Ids of `text`, which is UTF-8 (each maximal invalid subpart counts as U+FFFD). No BOS is
  /// added.
  std::vector<int32_t> Encode(std::string_view text, SpecialText special_text) const;

  /// The bytes that `id` stands for, valid UTF-8 or not; added tokens give their text. Empty for an
  /// id out of range.
  std::string_view TokenBytes(int32_t id) const;
  /// BOS, EOS and other added tokens marked special: skipped in output text.
  bool IsSpecial(int32_t id) const;

  /// Text of `ids`; bytes that are not UTF-8 become U+FFFD. See StreamDecoder for token by token.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  int32_t vocab_size() const;                // ids are below this
  int32_t bos_id() const;                    // -1: none
  int32_t eos_id() const;                    // -1: none
  bool add_bos() const;                      // raw prompts begin with BOS
  const std::string& chat_template() const;  // Jinja source; empty: none

 private:
  explicit Tokenizer(std::unique_ptr<const TokenizerDefinition> definition);

  std::unique_ptr<const TokenizerDefinition> definition_;
};

}  // namespace shoal
