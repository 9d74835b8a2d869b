// StreamDecoder: token ids to text as they come, never half a code point.
#pragma once

#include <cstdint>
#include <string>

#include "tokenizer/tokenizer.h"

namespace shoal {

/// Joined, the pieces equal Tokenizer::Decode of all ids. Thread: one at a time.
class StreamDecoder {
 public:
  /// `tokenizer` outlives the decoder.
  StreamDecoder(const Tokenizer* tokenizer, bool skip_special_tokens);

  /// The text that `id` completes: empty while its last code point lacks bytes.
  std::string Push(int32_t id);

  /// The rest: U+FFFD for an incomplete code point, else empty.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  const bool skip_special_tokens_;
  std::string pending_;  // an incomplete code point, at most 3 bytes
};

}  // namespace shoal
