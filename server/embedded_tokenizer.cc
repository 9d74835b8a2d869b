#include "server/embedded_tokenizer.h"

// The assembler copies the files: no generated source, and no compile time.
#define SHOAL_EMBED(symbol, path)         \
  asm(".section .rodata\n"                \
      ".global " #symbol                  \
      "_begin\n"                          \
      ".global " #symbol "_end\n" #symbol \
      "_begin:\n"                         \
      ".incbin \"" path "\"\n" #symbol    \
      "_end:\n"                           \
      ".byte 0\n"                         \
      ".previous\n")

SHOAL_EMBED(shoal_tokenizer, SHOAL_TOKENIZER_DIRECTORY "/tokenizer.json");
SHOAL_EMBED(shoal_tokenizer_config, SHOAL_TOKENIZER_DIRECTORY "/tokenizer_config.json");

extern "C" {
extern const char shoal_tokenizer_begin[], shoal_tokenizer_end[];
extern const char shoal_tokenizer_config_begin[], shoal_tokenizer_config_end[];
}

namespace shoal {

std::string_view EmbeddedTokenizerJson() { return {shoal_tokenizer_begin, shoal_tokenizer_end}; }

std::string_view EmbeddedTokenizerConfigJson() {
  return {shoal_tokenizer_config_begin, shoal_tokenizer_config_end};
}

}  // namespace shoal
