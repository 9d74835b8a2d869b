#include "server/http/json_writer.h"

#include <fmt/format.h>

#include <cstddef>
#include <iterator>

namespace shoal {
namespace {

/// Bytes of the code point that `text` begins with; 0 if it does not begin with one (Unicode, table
/// 3-7).
size_t CodePointBytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < size) return 0;
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return size;
}

void AppendAscii(std::string* out, char c) {
  switch (c) {
    case '"':
      *out += "\\\"";
      return;
    case '\\':
      *out += "\\\\";
      return;
    case '\n':
      *out += "\\n";
      return;
    case '\r':
      *out += "\\r";
      return;
    case '\t':
      *out += "\\t";
      return;
    default:
      if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F) {
        out->push_back(c);
      } else {
        fmt::format_to(std::back_inserter(*out), "\\u{:04x}", static_cast<int>(c));
      }
  }
}

}  // namespace

std::string JsonString(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t size = CodePointBytes(text);
    if (size == 1) {
      AppendAscii(&out, text[0]);
    } else if (size == 0) {
      out += "\uFFFD";
    } else {
      out += text.substr(0, size);
    }
    text.remove_prefix(size == 0 ? 1 : size);
  }
  out.push_back('"');
  return out;
}

std::string JsonLogprob(float logprob) {
  constexpr float kFloor = -9999;
  return fmt::format("{}", logprob >= kFloor ? logprob : kFloor);
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t size = CodePointBytes(text);
    if (size == 0) return false;
    text.remove_prefix(size);
  }
  return true;
}

}  // namespace shoal
