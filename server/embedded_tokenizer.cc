#include "server/embedded_tokenizer.h"

// The assembler copies the files: no generated source, and no compile time.
#define SHOAL_EMBED(symbol, path)        \
  asm(".section .rodata\n"               \
      ".global " #symbol                 \
      "Begin\n"                          \
      ".global " #symbol "End\n" #symbol \
      "Begin:\n"                         \
      ".incbin \"" path "\"\n" #symbol   \
      "End:\n"                           \
      ".byte 0\n"                        \
      ".previous\n")

SHOAL_EMBED(kShoalTokenizer, SHOAL_TOKENIZER_DIRECTORY "/tokenizer.json");
SHOAL_EMBED(kShoalTokenizerConfig, SHOAL_TOKENIZER_DIRECTORY "/tokenizer_config.json");

extern "C" {
extern const char kShoalTokenizerBegin[], kShoalTokenizerEnd[];
extern const char kShoalTokenizerConfigBegin[], kShoalTokenizerConfigEnd[];
}

namespace shoal {

std::string_view EmbeddedTokenizerJson() { return {kShoalTokenizerBegin, kShoalTokenizerEnd}; }

std::string_view EmbeddedTokenizerConfigJson() {
  return {kShoalTokenizerConfigBegin, kShoalTokenizerConfigEnd};
}

}  // namespace shoal
