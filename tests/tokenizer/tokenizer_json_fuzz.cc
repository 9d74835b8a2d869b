// Arbitrary bytes as tokenizer.json and, after a NUL byte, tokenizer_config.json.
#include <cstdint>
#include <string_view>

#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string_view tokenizer_json = bytes.substr(0, bytes.find('\0'));
  std::string_view config_json = bytes.substr(tokenizer_json.size());
  if (!config_json.empty()) config_json.remove_prefix(1);
  const auto tokenizer = shoal::Tokenizer::FromJson(tokenizer_json, config_json);
  if (tokenizer.ok()) {
    (*tokenizer)->Encode("Hello  \n wörld 12 <s>", shoal::Tokenizer::SpecialText::kAsToken);
  }
  return 0;
}
