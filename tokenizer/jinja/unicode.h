// Characters of UTF-8 text: decoding, classes and case, as Python's str sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shoal::jinja {

/// One code point in UTF-8, or one byte that is not part of any.
struct Character {
  char32_t code = 0xFFFD;  // U+FFFD for a stray byte
  size_t size = 1;         // bytes
};

/// The character at `position`, which is below text.size().
Character CharacterAt(std::string_view text, size_t position);
/// The character that ends at `end`, which is above 0.
Character CharacterBefore(std::string_view text, size_t end);

/// Byte offset of every character, then text.size(). Text is below 4 GiB.
std::vector<uint32_t> CharacterOffsets(std::string_view text);
int64_t CountCharacters(std::string_view text);

std::string ToUtf8(char32_t code);

bool IsSpace(char32_t code);
bool IsLineBreak(char32_t code);
bool IsWord(char32_t code);  // letter, digit or underscore

/// Simple (one to one) case mapping.
char32_t ToUpper(char32_t code);
char32_t ToLower(char32_t code);

std::string_view TrimRight(std::string_view text);

}  // namespace shoal::jinja
