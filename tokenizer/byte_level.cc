#include "tokenizer/byte_level.h"

#include <array>

namespace shoal {
namespace {

constexpr int kNumLetters = 0x144;  // the last letter is U+0143

struct Alphabet {
  std::array<uint16_t, 256> letter_of_byte{};
  std::array<int16_t, kNumLetters> byte_of_letter{};  // -1: not a letter
};

// Printable Latin-1 characters stand for themselves; the other bytes take U+0100, U+0101, ... in
// order.
constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  alphabet.byte_of_letter.fill(-1);
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
    const uint16_t letter = printable ? static_cast<uint16_t>(byte) : next++;
    alphabet.letter_of_byte[byte] = letter;
    alphabet.byte_of_letter[letter] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string LetterOfByte(uint8_t byte) {
  const uint16_t letter = kAlphabet.letter_of_byte[byte];
  if (letter < 0x80) return std::string(1, static_cast<char>(letter));
  return {static_cast<char>(0xC0 | (letter >> 6)), static_cast<char>(0x80 | (letter & 0x3F))};
}

std::optional<std::string> BytesOfLetters(std::string_view letters) {
  std::string bytes;
  bytes.reserve(letters.size());
  for (size_t i = 0; i < letters.size(); ++i) {
    int letter = static_cast<uint8_t>(letters[i]);
    if (letter >= 0x80) {
      // Two bytes of UTF-8 hold every letter of the alphabet.
      if (letter < 0xC2 || letter > 0xC5 || i + 1 == letters.size()) return std::nullopt;
      letter = (letter & 0x1F) << 6 | (static_cast<uint8_t>(letters[++i]) & 0x3F);
    }
    if (letter >= kNumLetters || kAlphabet.byte_of_letter[letter] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of_letter[letter]));
  }
  return bytes;
}

}  // namespace shoal
