#include "tokenizer/jinja/print.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

/// Shortest decimal that reads back as the same number, always recognisable as a float.
std::string FormatFloat(double value) {
  std::string text = fmt::format("{}", value);
  if (std::isfinite(value) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string HexEscape(char32_t code) {
  if (code < 0x100) return fmt::format("\\x{:02x}", static_cast<uint32_t>(code));
  return fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
}

/// Escape common to Python and JSON; empty if the character has none.
std::string_view ShortEscape(char32_t code) {
  switch (code) {
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '\\':
      return "\\\\";
    default:
      return "";
  }
}

/// Copies `text`, with `escape(code)` in place of the characters where that is not empty.
template <typename Escape>
void AppendEscaped(const Text& text, Text& out, Escape escape) {
  for (size_t begin = 0; begin < text.size();) {
    const Character character = CharacterAt(text.view(), begin);
    const size_t end = begin + character.size;
    const std::string escaped = escape(character.code);
    if (escaped.empty()) {
      out.Append(text, begin, end);
    } else {
      out.Append(escaped, text.FromInput(begin, end));
    }
    begin = end;
  }
}

void AppendRepr(const Text& text, Text& out) {
  const auto contains = [&](char c) { return text.view().find(c) != std::string_view::npos; };
  const char quote = contains('\'') && !contains('"') ? '"' : '\'';
  out.Append({&quote, 1}, false);
  AppendEscaped(text, out, [&](char32_t code) -> std::string {
    if (code == static_cast<char32_t>(quote)) return fmt::format("\\{}", quote);
    if (code < 0x20 || (code >= 0x7F && code <= 0xA0) || code == 0xAD) {
      const auto escape = ShortEscape(code);
      return escape.empty() ? HexEscape(code) : std::string(escape);
    }
    return code == '\\' ? "\\\\" : "";
  });
  out.Append({&quote, 1}, false);
}

void AppendJsonString(const Text& text, bool ensure_ascii, Text& out) {
  out.Append("\"", false);
  AppendEscaped(text, out, [&](char32_t code) -> std::string {
    if (const auto escape = ShortEscape(code); !escape.empty()) return std::string(escape);
    if (code == '"') return "\\\"";
    if (code == '\b') return "\\b";
    if (code == '\f') return "\\f";
    if (code >= 0x20 && (code < 0x7F || !ensure_ascii)) return "";
    const auto unit = [](char32_t u) { return fmt::format("\\u{:04x}", static_cast<uint32_t>(u)); };
    if (code < 0x10000) return unit(code);
    return unit(0xD7C0 + (code >> 10)) + unit(0xDC00 + (code & 0x3FF));
  });
  out.Append("\"", false);
}

/// Numbers, booleans and none, in the words of Python or of JSON.
std::string ScalarText(const Value& value, bool json) {
  switch (value.kind()) {
    case Kind::kNone:
      return json ? "null" : "None";
    case Kind::kBoolean:
      if (json) return value.boolean() ? "true" : "false";
      return value.boolean() ? "True" : "False";
    case Kind::kInteger:
      return fmt::format("{}", value.integer());
    default:
      if (json && std::isnan(value.number())) return "NaN";
      if (json && std::isinf(value.number())) return value.number() < 0 ? "-Infinity" : "Infinity";
      return FormatFloat(value.number());
  }
}

bool IsScalar(const Value& value) { return value.is_number() || value.is(Kind::kNone); }

absl::Status WriteRepr(Heap& heap, const Value& value, Text& out);

absl::Status WriteEntries(Heap& heap, const Dict& dict, Text& out) {
  out.Append("{", false);
  for (size_t i = 0; i < dict.entries.size(); ++i) {
    if (i > 0) out.Append(", ", false);
    RETURN_IF_ERROR(WriteRepr(heap, dict.entries[i].first, out));
    out.Append(": ", false);
    RETURN_IF_ERROR(WriteRepr(heap, dict.entries[i].second, out));
  }
  out.Append("}", false);
  return absl::OkStatus();
}

absl::Status WriteRepr(Heap& heap, const Value& value, Text& out) {
  Heap::Level level(heap);
  RETURN_IF_ERROR(level.Enter());
  RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(out.size())));
  if (IsScalar(value)) {
    out.Append(ScalarText(value, false), value.FromInput());
  } else if (value.is(Kind::kString)) {
    RETURN_IF_ERROR(heap.Spend(value.text().cost()));
    AppendRepr(value.text(), out);
  } else if (value.is(Kind::kDict)) {
    return WriteEntries(heap, value.dict(), out);
  } else if (value.is(Kind::kList)) {
    const auto& items = value.list().items;
    const bool tuple = value.list().is_tuple;
    out.Append(tuple ? "(" : "[", false);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out.Append(", ", false);
      RETURN_IF_ERROR(WriteRepr(heap, items[i], out));
    }
    out.Append(tuple ? (items.size() == 1 ? ",)" : ")") : "]", false);
  } else {
    out.Append(fmt::format("<{}>", value.TypeName()), false);
  }
  return absl::OkStatus();
}

/// One traversal of json.dumps.
class JsonWriter {
 public:
  JsonWriter(Heap& heap, const JsonFormat& format) : heap_(heap), format_(format) {}

  absl::Status Write(const Value& value) {
    Heap::Level level(heap_);
    RETURN_IF_ERROR(level.Enter());
    RETURN_IF_ERROR(heap_.CheckBytes(static_cast<int64_t>(out_.size())));
    if (IsScalar(value)) {
      out_.Append(ScalarText(value, true), value.FromInput());
      return absl::OkStatus();
    }
    if (value.is(Kind::kString)) {
      RETURN_IF_ERROR(heap_.Spend(value.text().cost()));
      AppendJsonString(value.text(), format_.ensure_ascii, out_);
      return absl::OkStatus();
    }
    if (value.is(Kind::kList)) return WriteList(value.list());
    if (value.is(Kind::kDict) && !value.dict().is_namespace) return WriteDict(value.dict());
    if (value.is(Kind::kUndefined)) return value.UndefinedError();
    return Error("a '{}' cannot be written as JSON", value.TypeName());
  }

  Text Take() { return std::move(out_); }

 private:
  absl::Status WriteList(const List& list) {
    out_.Append("[", false);
    ++level_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      RETURN_IF_ERROR(Separate(i == 0));
      RETURN_IF_ERROR(Write(list.items[i]));
    }
    return Close("]", list.items.empty());
  }

  absl::Status WriteDict(const Dict& dict) {
    std::vector<const std::pair<Value, Value>*> entries;
    entries.reserve(dict.entries.size());
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (format_.sort_keys) {
      std::ranges::sort(entries, {}, [](const auto* entry) { return KeyView(entry->first); });
    }
    out_.Append("{", false);
    ++level_;
    for (size_t i = 0; i < entries.size(); ++i) {
      RETURN_IF_ERROR(Separate(i == 0));
      const Value& key = entries[i]->first;
      if (key.is(Kind::kString)) {
        AppendJsonString(key.text(), format_.ensure_ascii, out_);
      } else {
        out_.Append(fmt::format("\"{}\"", ScalarText(key, true)), key.FromInput());
      }
      out_.Append(format_.key_separator);
      RETURN_IF_ERROR(Write(entries[i]->second));
    }
    return Close("}", entries.empty());
  }

  static std::string_view KeyView(const Value& key) {
    return key.is(Kind::kString) ? key.text().view() : "";
  }

  absl::Status Separate(bool first) {
    if (!first) out_.Append(format_.item_separator);
    return NewLine();
  }

  absl::Status Close(std::string_view bracket, bool empty) {
    --level_;
    if (!empty) RETURN_IF_ERROR(NewLine());
    out_.Append(bracket, false);
    return absl::OkStatus();
  }

  absl::Status NewLine() {
    if (!format_.indent) return absl::OkStatus();
    const int64_t width = static_cast<int64_t>(format_.indent->size()) * level_;
    RETURN_IF_ERROR(heap_.CheckBytes(static_cast<int64_t>(out_.size()) + width));
    RETURN_IF_ERROR(heap_.Spend(width / 256));
    out_.Append("\n", false);
    for (int i = 0; i < level_; ++i) out_.Append(*format_.indent);
    return absl::OkStatus();
  }

  Heap& heap_;
  const JsonFormat& format_;
  int level_ = 0;
  Text out_;
};

}  // namespace

absl::StatusOr<Text> ToText(Heap& heap, const Value& value) {
  if (value.is(Kind::kUndefined)) return Text();
  if (value.is(Kind::kString)) return value.text();
  Text text;
  RETURN_IF_ERROR(WriteRepr(heap, value, text));
  return text;
}

absl::StatusOr<Text> ToJson(Heap& heap, const Value& value, const JsonFormat& format) {
  JsonWriter writer(heap, format);
  RETURN_IF_ERROR(writer.Write(value));
  return writer.Take();
}

}  // namespace shoal::jinja
