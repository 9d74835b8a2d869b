#include "server/service/text_assembler.h"

#include <algorithm>
#include <utility>

namespace shoal {
namespace {

size_t CountCodePoints(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  }));
}

}  // namespace

TextAssembler::TextAssembler(const Tokenizer* tokenizer, bool skip_special_tokens,
                             bool strip_leading_space, std::vector<std::string> stop)
    : decoder_(tokenizer, skip_special_tokens),
      stop_(std::move(stop)),
      strip_leading_space_(strip_leading_space) {}

void TextAssembler::Push(GenerationDelta::Token token, Part part) {
  if (found_ != nullptr) return;
  if (part == Part::kStopToken) Append(decoder_.Flush(), Part::kOutput);
  Held held;
  held.begin_bytes = num_certain_bytes_ + held_.size();
  token.text_offset = num_code_points_;
  if (part != Part::kStopToken) Append(decoder_.Push(token.token_id), part);
  held.end_bytes = num_certain_bytes_ + held_.size();
  held.token = std::move(token);
  tokens_.push_back(std::move(held));
}

void TextAssembler::Finish() {
  if (found_ != nullptr) return;
  Append(decoder_.Flush(), Part::kOutput);
  Release(held_.size());
}

void TextAssembler::Take(GenerationDelta* delta) {
  delta->text = std::exchange(ready_, {});
  size_t num_taken = 0;
  for (; num_taken < tokens_.size(); ++num_taken) {
    Held& held = tokens_[num_taken];
    // A token that the cut goes through still gave the text before it.
    const bool is_cut = found_ != nullptr && held.begin_bytes < num_certain_bytes_;
    if (held.end_bytes > num_certain_bytes_ && !is_cut) break;
    delta->tokens.push_back(std::move(held.token));
  }
  tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<ptrdiff_t>(num_taken));
}

void TextAssembler::Append(std::string text, Part part) {
  if (text.empty()) return;
  if (part != Part::kPrompt && std::exchange(strip_leading_space_, false) && text[0] == ' ') {
    text.erase(0, 1);
  }
  num_code_points_ += CountCodePoints(text);
  held_ += text;
  if (part == Part::kPrompt || part == Part::kEarlyOutput) return Release(held_.size());
  size_t begin = 0;
  found_ = FindStop(&begin);
  Release(found_ != nullptr ? begin : held_.size() - NumPossibleStopBytes());
}

void TextAssembler::Release(size_t num_bytes) {
  ready_.append(held_, 0, num_bytes);
  held_.erase(0, num_bytes);
  num_certain_bytes_ += num_bytes;
}

const std::string* TextAssembler::FindStop(size_t* begin) const {
  const std::string* found = nullptr;
  for (const std::string& stop : stop_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    const size_t best_end = found == nullptr ? std::string::npos : *begin + found->size();
    if (end < best_end || (end == best_end && at < *begin)) {
      found = &stop;
      *begin = at;
    }
  }
  return found;
}

size_t TextAssembler::NumPossibleStopBytes() const {
  size_t longest = 0;
  const std::string_view held = held_;
  for (const std::string& stop : stop_) {
    for (size_t size = std::min(stop.size() - 1, held.size()); size > longest; --size) {
      if (held.substr(held.size() - size) == std::string_view(stop).substr(0, size)) longest = size;
    }
  }
  return longest;
}

}  // namespace shoal
