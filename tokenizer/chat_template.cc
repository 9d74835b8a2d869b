#include "tokenizer/chat_template.h"

#include <utility>

#include <nlohmann/json.hpp>

namespace shoal {

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  auto parsed = jinja::Template::Parse(source);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("chat template: {}", std::string(parsed.status().message())));
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(*std::move(parsed)));
}

absl::StatusOr<std::vector<jinja::Segment>> ChatTemplate::Render(
    const std::vector<ChatMessage>& messages, bool add_generation_prompt,
    const Tokenizer& tokenizer) const {
  // What templates are written to find: without tools and documents, these are none, not undefined.
  nlohmann::ordered_json trusted = {
      {"add_generation_prompt", add_generation_prompt}, {"tools", nullptr}, {"documents", nullptr}};
  if (tokenizer.bos_id() >= 0) trusted["bos_token"] = tokenizer.TokenBytes(tokenizer.bos_id());
  if (tokenizer.eos_id() >= 0) trusted["eos_token"] = tokenizer.TokenBytes(tokenizer.eos_id());
  auto list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  nlohmann::ordered_json input = nlohmann::ordered_json::object();
  input["messages"] = std::move(list);
  auto segments = template_->Render(trusted, input, jinja::Limits());
  if (segments.ok()) return segments;
  return absl::Status(segments.status().code(),
                      fmt::format("chat template: {}", std::string(segments.status().message())));
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::Encode(const std::vector<ChatMessage>& messages,
                                                          bool add_generation_prompt,
                                                          const Tokenizer& tokenizer) const {
  ASSIGN_OR_RETURN(const auto segments, Render(messages, add_generation_prompt, tokenizer));
  std::vector<int32_t> ids;
  std::string
      plain;  // text since the last special token: a word may cross from template to message
  const auto encode_plain = [&] {
    const auto tokens = tokenizer.Encode(plain, Tokenizer::SpecialText::kAsPlainText);
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    plain.clear();
  };
  for (const jinja::Segment& segment : segments) {
    if (segment.from_input) {
      plain += segment.text;
      continue;
    }
    for (const int32_t id : tokenizer.Encode(segment.text, Tokenizer::SpecialText::kAsToken)) {
      if (tokenizer.IsSpecial(id)) {
        encode_plain();
        ids.push_back(id);
      } else {
        plain += tokenizer.TokenBytes(id);
      }
    }
  }
  encode_plain();
  return ids;
}

}  // namespace shoal
