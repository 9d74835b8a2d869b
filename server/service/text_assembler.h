// TextAssembler: the tokens of one choice become its text, cut before the first stop string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/service/generation.h"
#include "tokenizer/stream_decoder.h"

namespace shoal {

/// Text that may be the beginning of a stop string is held back until it is clear whether it is.
/// Where the text is cut depends on the text alone, not on how it falls into tokens: at the first
/// code point that completes a stop string, before the longest one that ends there. (Only where
/// early output ends is a matter of tokens.) Thread: one at a time.
class TextAssembler {
 public:
  /// What a token is to the text.
  enum class Part {
    kPrompt,       // echoed: no stop string is looked for
    kEarlyOutput,  // neither is in this
    kOutput,
    kStopToken,  // ends the output, has no text
  };

  /// `tokenizer` outlives the assembler.
  TextAssembler(const Tokenizer* tokenizer, bool skip_special_tokens, bool strip_leading_space,
                std::vector<std::string> stop);

  /// Sets the token's text_offset. Ignored once stop() is set.
  void Push(GenerationDelta::Token token, Part part);
  /// No token follows: nothing needs to be held back any more.
  void Finish();

  /// Moves the text that is certain, and the tokens whose text that is, to `delta`.
  void Take(GenerationDelta* delta);

  /// The stop string that was found, or null.
  const std::string* stop() const { return found_; }

 private:
  struct Held {
    GenerationDelta::Token token;
    size_t begin_bytes = 0;  // of the token's text in the choice's text
    size_t end_bytes = 0;
  };

  void Append(std::string text, Part part);
  void Release(size_t num_bytes);
  const std::string* FindStop(size_t* begin) const;
  size_t NumPossibleStopBytes() const;

  StreamDecoder decoder_;
  const std::vector<std::string> stop_;
  bool strip_leading_space_;
  const std::string* found_ = nullptr;
  std::string ready_;  // certain, to be taken
  std::string held_;   // behind it: may be the beginning of a stop string
  std::vector<Held> tokens_;
  size_t num_certain_bytes_ = 0;  // of the choice's text, taken or ready
  size_t num_code_points_ = 0;    // of the choice's text, held back or not
};

}  // namespace shoal
