// UTF-8 as a decoder needs it: which bytes are a code point, which never will be, which are half of
// one.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace shoal {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Unit {
  enum class Kind { kCodePoint, kInvalid, kIncomplete };
  Kind kind;
  size_t length;  // bytes of the code point, or of the maximal subpart of an ill-formed one
};

/// The first unit of `bytes`, which is not empty (Unicode 15, table 3-7 and section 3.9).
/// kIncomplete: `bytes` ends inside what may still become a code point.
Utf8Unit FirstUtf8Unit(std::string_view bytes);

/// Appends `bytes` to `text`, each maximal invalid subpart as U+FFFD. Leaves out an incomplete code
/// point at the end; returns how many bytes it took.
size_t AppendValidUtf8(std::string_view bytes, std::string* text);

/// `bytes` with every maximal invalid subpart, also an incomplete one at the end, as U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace shoal
