#include "tokenizer/utf8.h"

#include <cstdint>

namespace shoal {

Utf8Unit FirstUtf8Unit(std::string_view bytes) {
  const auto lead = static_cast<uint8_t>(bytes[0]);
  if (lead < 0x80) return {Utf8Unit::Kind::kCodePoint, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Unit::Kind::kInvalid, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte has a narrower range after some leads: no overlong forms, surrogates, or >
  // U+10FFFF.
  uint8_t lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Unit::Kind::kIncomplete, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    if (byte < lowest || byte > highest) return {Utf8Unit::Kind::kInvalid, i};
    lowest = 0x80;
    highest = 0xBF;
  }
  return {Utf8Unit::Kind::kCodePoint, length};
}

size_t AppendValidUtf8(std::string_view bytes, std::string* text) {
  size_t begin = 0;  // of the run of code points not yet appended
  size_t end = 0;
  while (end < bytes.size()) {
    const Utf8Unit unit = FirstUtf8Unit(bytes.substr(end));
    if (unit.kind == Utf8Unit::Kind::kIncomplete) break;
    if (unit.kind == Utf8Unit::Kind::kInvalid) {
      text->append(bytes.substr(begin, end - begin)).append(kReplacementCharacter);
      begin = end + unit.length;
    }
    end += unit.length;
  }
  text->append(bytes.substr(begin, end - begin));
  return end;
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  if (AppendValidUtf8(bytes, &text) < bytes.size()) text += kReplacementCharacter;
  return text;
}

}  // namespace shoal
