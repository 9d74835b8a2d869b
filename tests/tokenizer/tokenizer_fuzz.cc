// Arbitrary bytes through the project's own tokenizer. Run in the root of the source tree.
#include <cstdint>
#include <string>
#include <string_view>

#include "tests/tokenizer/deployed_tokenizer.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/utf8.h"

namespace shoal {
namespace {

void RoundTrip(const Tokenizer& tokenizer, std::string_view text, Tokenizer::SpecialText special) {
  const std::vector<int32_t> ids = tokenizer.Encode(text, special);
  const std::string decoded = tokenizer.Decode(ids, false);
  SHOAL_CHECK(decoded == ReplaceInvalidUtf8(text), "decoded text differs");
  StreamDecoder decoder(&tokenizer, false);
  std::string joined;
  for (const int32_t id : ids) {
    SHOAL_CHECK(special == Tokenizer::SpecialText::kAsToken || !tokenizer.IsSpecial(id),
                "plain text became special token {}", id);
    joined += decoder.Push(id);
  }
  SHOAL_CHECK(joined + decoder.Flush() == decoded, "pieces differ from the whole");
}

// The bytes as ids, two for one.
void DecodeIds(const Tokenizer& tokenizer, std::string_view bytes) {
  for (const bool skip : {false, true}) {
    StreamDecoder decoder(&tokenizer, skip);
    std::vector<int32_t> ids;
    std::string joined;
    for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
      ids.push_back(static_cast<uint8_t>(bytes[i]) << 8 | static_cast<uint8_t>(bytes[i + 1]));
      const std::string piece = decoder.Push(ids.back());
      SHOAL_CHECK(piece == ReplaceInvalidUtf8(piece), "a piece is not UTF-8");
      joined += piece;
    }
    SHOAL_CHECK(joined + decoder.Flush() == tokenizer.Decode(ids, skip),
                "pieces differ from the whole");
  }
}

}  // namespace
}  // namespace shoal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const shoal::Tokenizer& tokenizer = shoal::DeployedTokenizer();
  shoal::RoundTrip(tokenizer, bytes, shoal::Tokenizer::SpecialText::kAsPlainText);
  shoal::RoundTrip(tokenizer, bytes, shoal::Tokenizer::SpecialText::kAsToken);
  shoal::DecodeIds(tokenizer, bytes);
  return 0;
}
