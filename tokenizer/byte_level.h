// The byte alphabet of byte-level BPE: every byte is written as one printable letter (GPT-2's
// table).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace shoal {

/// The letter, in UTF-8, that stands for `byte`: 'Ġ' for a space.
std::string LetterOfByte(uint8_t byte);

/// The bytes that `letters` (UTF-8) stand for; nothing if one of them is not in the alphabet.
std::optional<std::string> BytesOfLetters(std::string_view letters);

}  // namespace shoal
