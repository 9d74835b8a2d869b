// Template source to tokens, with white space around tags trimmed as chat templates expect.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace shoal::jinja {

enum class TokenKind {
  kData,  // text between tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,  // text: the value, escapes resolved
  kInteger,
  kFloat,
  kOperator,
  kEnd,  // of the source
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

/// Tokens of `source`, ending in kEnd. Blocks are trimmed as with Jinja's trim_blocks and
/// lstrip_blocks, and one newline at the end of the source is dropped. INVALID_ARGUMENT with line.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

/// INVALID_ARGUMENT that names the line.
absl::Status ErrorAt(int line, std::string_view message);

}  // namespace shoal::jinja
