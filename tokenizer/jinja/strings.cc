#include "tokenizer/jinja/strings.h"

#include <algorithm>

#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

/// Splits at runs of white space.
std::vector<Text> SplitWords(const Text& text, int64_t limit) {
  std::vector<Text> words;
  size_t position = 0;
  const auto space = [&](size_t at) { return IsSpace(CharacterAt(text.view(), at).code); };
  const auto skip = [&](bool while_space) {
    while (position < text.size() && space(position) == while_space) {
      position += CharacterAt(text.view(), position).size;
    }
  };
  while (true) {
    skip(true);
    if (position == text.size()) return words;
    const size_t begin = position;
    if (limit >= 0 && static_cast<int64_t>(words.size()) == limit) {
      words.push_back(text.Slice(begin, TrimRight(text.view()).size()));
      return words;
    }
    skip(false);
    words.push_back(text.Slice(begin, position));
  }
}

std::vector<Text> SplitWordsFromRight(const Text& text, int64_t limit) {
  std::vector<Text> words;
  size_t end = TrimRight(text.view()).size();
  while (end > 0) {
    size_t begin = end;
    if (static_cast<int64_t>(words.size()) == limit) {
      words.push_back(Strip(text.Slice(0, end), std::nullopt, Side::kLeft));
      break;
    }
    while (begin > 0) {
      const Character before = CharacterBefore(text.view(), begin);
      if (IsSpace(before.code)) break;
      begin -= before.size;
    }
    words.push_back(text.Slice(begin, end));
    end = TrimRight(text.view().substr(0, begin)).size();
  }
  std::ranges::reverse(words);
  return words;
}

std::vector<Text> SplitFromRight(const Text& text, std::string_view separator, int64_t limit) {
  std::vector<Text> parts;
  size_t end = text.size();
  while (static_cast<int64_t>(parts.size()) != limit && end >= separator.size()) {
    const size_t found = text.view().rfind(separator, end - separator.size());
    if (found == std::string_view::npos) break;
    parts.push_back(text.Slice(found + separator.size(), end));
    end = found;
  }
  parts.push_back(text.Slice(0, end));
  std::ranges::reverse(parts);
  return parts;
}

bool StartsWord(char32_t before) {
  return IsSpace(before) || before == '-' || before == '(' || before == '{' || before == '[' ||
         before == '<';
}

bool IsCased(char32_t code) { return ToUpper(code) != code || ToLower(code) != code; }

}  // namespace

Text Strip(const Text& text, const std::optional<Text>& characters, Side side) {
  std::vector<std::string_view> set;
  if (characters) {
    const std::string_view all = characters->view();
    for (size_t i = 0; i < all.size(); i += CharacterAt(all, i).size) {
      set.push_back(all.substr(i, CharacterAt(all, i).size));
    }
  }
  const auto stripped = [&](size_t begin, const Character& character) {
    if (!characters) return IsSpace(character.code);
    return std::ranges::find(set, text.view().substr(begin, character.size)) != set.end();
  };
  size_t begin = 0;
  size_t end = text.size();
  while (side != Side::kRight && begin < end) {
    const Character first = CharacterAt(text.view(), begin);
    if (!stripped(begin, first)) break;
    begin += first.size;
  }
  while (side != Side::kLeft && begin < end) {
    const Character last = CharacterBefore(text.view(), end);
    if (!stripped(end - last.size, last)) break;
    end -= last.size;
  }
  return text.Slice(begin, end);
}

std::vector<Text> Split(const Text& text, const std::optional<Text>& separator, int64_t limit,
                        Side side) {
  if (!separator) {
    return side == Side::kRight ? SplitWordsFromRight(text, limit) : SplitWords(text, limit);
  }
  if (side == Side::kRight) return SplitFromRight(text, separator->view(), limit);
  std::vector<Text> parts;
  size_t begin = 0;
  while (static_cast<int64_t>(parts.size()) != limit) {
    const size_t found = text.view().find(separator->view(), begin);
    if (found == std::string_view::npos) break;
    parts.push_back(text.Slice(begin, found));
    begin = found + separator->size();
  }
  parts.push_back(text.Slice(begin, text.size()));
  return parts;
}

std::vector<Text> SplitLines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const Character character = CharacterAt(text.view(), i);
    size_t next = i + character.size;
    if (IsLineBreak(character.code)) {
      if (character.code == '\r' && next < text.size() && text.view()[next] == '\n') ++next;
      lines.push_back(text.Slice(begin, keep_ends ? next : i));
      begin = next;
    }
    i = next;
  }
  if (begin < text.size()) lines.push_back(text.Slice(begin, text.size()));
  return lines;
}

absl::StatusOr<Text> Replace(Heap& heap, const Text& text, const Text& from, const Text& to,
                             int64_t limit) {
  Text result;
  size_t begin = 0;  // of what is not copied yet
  size_t search = 0;
  for (int64_t count = 0; count != limit && search <= text.size(); ++count) {
    const size_t found = text.view().find(from.view(), search);
    if (found == std::string_view::npos) break;
    result.Append(text, begin, found);
    result.Append(to);
    RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(result.size())));
    begin = found + from.size();
    search = begin;
    if (from.empty()) search += found < text.size() ? CharacterAt(text.view(), found).size : 1;
  }
  result.Append(text, begin, text.size());
  return result;
}

Text ToCase(const Text& text, Case target) {
  Text result;
  char32_t before = ' ';
  for (size_t begin = 0; begin < text.size();) {
    const Character character = CharacterAt(text.view(), begin);
    const bool upper = target == Case::kUpper || (target == Case::kCapitalized && begin == 0) ||
                       (target == Case::kTitle && !IsCased(before)) ||
                       (target == Case::kWords && StartsWord(before));
    const char32_t mapped = upper ? ToUpper(character.code) : ToLower(character.code);
    const size_t end = begin + character.size;
    if (mapped == character.code) {
      result.Append(text, begin, end);
    } else {
      result.Append(ToUtf8(mapped), text.FromInput(begin, end));
    }
    before = character.code;
    begin = end;
  }
  return result;
}

bool HasCase(std::string_view text, Case target) {
  bool cased = false;
  for (size_t i = 0; i < text.size();) {
    const Character character = CharacterAt(text, i);
    i += character.size;
    if (!IsCased(character.code)) continue;
    cased = true;
    const char32_t wanted =
        target == Case::kUpper ? ToUpper(character.code) : ToLower(character.code);
    if (wanted != character.code) return false;
  }
  return cased;
}

}  // namespace shoal::jinja
