#include "tokenizer/jinja/string_literal.h"

#include <charconv>

#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

/// The one character that a backslash and `letter` stand for; '\0' if it is none of these.
char SimpleEscape(char letter) {
  switch (letter) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case 'a':
      return '\a';
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'v':
      return '\v';
    case '\\':
    case '\'':
    case '"':
      return letter;
    default:
      return '\0';
  }
}

absl::StatusOr<std::string> HexEscape(std::string_view digits, size_t size) {
  uint32_t code = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
  const bool complete =
      digits.size() == size && end == digits.data() + size && error == std::errc();
  if (!complete)
    return absl::InvalidArgumentError(fmt::format("an escape needs {} hex digits", size));
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
    return absl::InvalidArgumentError(fmt::format("U+{:04X} is not a character", code));
  }
  return ToUtf8(code);
}

/// Up to three digits; how many is added to `position`.
std::string OctalEscape(std::string_view literal, size_t& position) {
  char32_t code = 0;
  for (int i = 0; i < 3 && position < literal.size(); ++i, ++position) {
    if (literal[position] < '0' || literal[position] > '7') break;
    code = code * 8 + static_cast<char32_t>(literal[position] - '0');
  }
  return ToUtf8(code);
}

}  // namespace

absl::StatusOr<std::string> ResolveEscapes(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size();) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text += literal[i++];
      continue;
    }
    const char letter = literal[i + 1];
    const size_t hex_digits = letter == 'x' ? 2 : letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    if (const char simple = SimpleEscape(letter); simple != '\0') {
      text += simple;
      i += 2;
    } else if (hex_digits > 0) {
      ASSIGN_OR_RETURN(const std::string character,
                       HexEscape(literal.substr(i + 2, hex_digits), hex_digits));
      text += character;
      i += 2 + hex_digits;
    } else if (letter >= '0' && letter <= '7') {
      text += OctalEscape(literal, ++i);
    } else if (letter == 'N') {
      return absl::InvalidArgumentError("the escape \\N is not supported");
    } else {  // a backslash before a line end joins the lines, before anything else it stays
      if (letter != '\n') text += literal.substr(i, 2);
      i += 2;
    }
  }
  return text;
}

}  // namespace shoal::jinja
