#include "tokenizer/jinja/unicode.h"

#include <clocale>
#include <cwctype>

namespace shoal::jinja {
namespace {

locale_t Utf8Locale() {
  static const locale_t kLocale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return kLocale;
}

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

Character CharacterAt(std::string_view text, size_t position) {
  const auto lead = static_cast<unsigned char>(text[position]);
  if (lead < 0x80) return {lead, 1};
  const size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() - position < size) return {};
  char32_t code = lead & (0xFF >> (size + 1));
  for (size_t i = 1; i < size; ++i) {
    if (!IsContinuation(text[position + i])) return {};
    code = (code << 6) | (static_cast<unsigned char>(text[position + i]) & 0x3F);
  }
  const char32_t smallest = size == 4 ? 0x10000 : size == 3 ? 0x800 : 0x80;
  if (code < smallest || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {};
  return {code, size};
}

Character CharacterBefore(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && end - begin < 4 && IsContinuation(text[begin])) --begin;
  const Character character = CharacterAt(text.substr(0, end), begin);
  return begin + character.size == end ? character : Character{};
}

std::vector<uint32_t> CharacterOffsets(std::string_view text) {
  std::vector<uint32_t> offsets;
  for (size_t i = 0; i < text.size(); i += CharacterAt(text, i).size) {
    offsets.push_back(static_cast<uint32_t>(i));
  }
  offsets.push_back(static_cast<uint32_t>(text.size()));
  return offsets;
}

int64_t CountCharacters(std::string_view text) {
  int64_t count = 0;
  for (size_t i = 0; i < text.size(); i += CharacterAt(text, i).size) ++count;
  return count;
}

std::string ToUtf8(char32_t code) {
  const auto byte = [](char32_t bits) { return static_cast<char>(bits); };
  const auto tail = [&](int shift) { return byte(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) return {byte(code)};
  if (code < 0x800) return {byte(0xC0 | (code >> 6)), tail(0)};
  if (code < 0x10000) return {byte(0xE0 | (code >> 12)), tail(6), tail(0)};
  return {byte(0xF0 | (code >> 18)), tail(12), tail(6), tail(0)};
}

bool IsSpace(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool IsLineBreak(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
         code == 0x2028 || code == 0x2029;
}

bool IsWord(char32_t code) {
  return code == U'_' || iswalnum_l(static_cast<wint_t>(code), Utf8Locale()) != 0;
}

char32_t ToUpper(char32_t code) {
  return static_cast<char32_t>(towupper_l(static_cast<wint_t>(code), Utf8Locale()));
}

char32_t ToLower(char32_t code) {
  return static_cast<char32_t>(towlower_l(static_cast<wint_t>(code), Utf8Locale()));
}

std::string_view TrimRight(std::string_view text) {
  while (!text.empty()) {
    const Character last = CharacterBefore(text, text.size());
    if (!IsSpace(last.code)) break;
    text.remove_suffix(last.size);
  }
  return text;
}

}  // namespace shoal::jinja
