// ChatTemplate: messages -> prompt token ids, so that a message can never forge a special token.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/jinja/jinja.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

/// The model's own template. Immutable. Thread: any.
class ChatTemplate {
 public:
  /// INVALID_ARGUMENT if `source` is not a template we can read.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);

  /// Text of the conversation, cut where trust changes. INVALID_ARGUMENT: the template refused the
  /// conversation; RESOURCE_EXHAUSTED: it is too long.
  absl::StatusOr<std::vector<jinja::Segment>> Render(const std::vector<ChatMessage>& messages,
                                                     bool add_generation_prompt,
                                                     const Tokenizer& tokenizer) const;

  /// Its token ids: special tokens come from the template's own text only; all other text is
  /// tokenized as one, as if special tokens had no text. Errors as Render.
  absl::StatusOr<std::vector<int32_t>> Encode(const std::vector<ChatMessage>& messages,
                                              bool add_generation_prompt,
                                              const Tokenizer& tokenizer) const;

 private:
  explicit ChatTemplate(std::unique_ptr<jinja::Template> parsed) : template_(std::move(parsed)) {}

  std::unique_ptr<jinja::Template> template_;
};

}  // namespace shoal
