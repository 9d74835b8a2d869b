// Filters of strings and numbers.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/print.h"
#include "tokenizer/jinja/strings.h"
#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result StringFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(Text text, ToText(heap, self));
  return heap.NewString(std::move(text));
}

Result TrimFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Text text, ToText(heap, self));
  std::optional<Text> characters;
  if (args.positional[0].is(Kind::kString)) {
    characters = args.positional[0].text();
    RETURN_IF_ERROR(heap.Spend(static_cast<int64_t>(text.size() * characters->size() / 256)));
  }
  return heap.NewString(Strip(text, characters, Side::kBoth));
}

template <Case target>
Result CaseFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const Text text, ToText(heap, self));
  return heap.NewString(ToCase(text, target));
}

Result ReplaceFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Text text, ToText(heap, self));
  ASSIGN_OR_RETURN(const Text from, ToText(heap, args.positional[0]));
  ASSIGN_OR_RETURN(const Text to, ToText(heap, args.positional[1]));
  const int64_t limit = args.positional[2].is_integer() ? args.positional[2].integer() : -1;
  ASSIGN_OR_RETURN(Text replaced, Replace(heap, text, from, to, limit));
  return heap.NewString(std::move(replaced));
}

Result IndentFilter(Heap& heap, const Value& self, const Args& args) {
  const Value& width = args.positional[0];
  const bool first = args.positional[1].Truthy();
  const bool blank = args.positional[2].Truthy();
  ASSIGN_OR_RETURN(Text text, ToText(heap, self));
  Text indent("    ");
  if (width.is(Kind::kString)) indent = width.text();
  if (width.is_integer()) {
    RETURN_IF_ERROR(heap.CheckBytes(width.integer()));
    indent = Text(std::string(static_cast<size_t>(std::max<int64_t>(width.integer(), 0)), ' '));
  }
  text.Append("\n", false);
  const std::vector<Text> lines = SplitLines(text, false);
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", false);
    if (i == 0 ? first : blank || !lines[i].empty()) out.Append(indent);
    out.Append(lines[i]);
    RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(out.size())));
  }
  return heap.NewString(std::move(out));
}

Result EscapeFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const Text text, ToText(heap, self));
  Text out;
  for (size_t i = 0; i < text.size(); ++i) {
    std::string_view entity;
    switch (text.view()[i]) {
      case '&':
        entity = "&amp;";
        break;
      case '<':
        entity = "&lt;";
        break;
      case '>':
        entity = "&gt;";
        break;
      case '\'':
        entity = "&#39;";
        break;
      case '"':
        entity = "&#34;";
        break;
      default:
        out.Append(text, i, i + 1);
        continue;
    }
    out.Append(entity, text.FromInput(i, i + 1));
  }
  return heap.NewString(std::move(out));
}

Result WordCountFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const Text text, ToText(heap, self));
  int64_t words = 0;
  bool inside = false;
  for (size_t i = 0; i < text.size();) {
    const Character character = CharacterAt(text.view(), i);
    i += character.size;
    const bool word = IsWord(character.code);
    if (word && !inside) ++words;
    inside = word;
  }
  return Value::Integer(words);
}

Result FormatFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Text format, ToText(heap, self));
  if (!args.keyword.empty()) return Error("format takes no keyword arguments");
  return FormatPercent(heap, format, args.positional);
}

Result ToJsonFilter(Heap& heap, const Value& self, const Args& args) {
  const auto& [ascii, indent, separators, sort_keys] =
      std::tie(args.positional[0], args.positional[1], args.positional[2], args.positional[3]);
  JsonFormat format;
  format.ensure_ascii = ascii.Truthy();
  format.sort_keys = sort_keys.Truthy();
  if (indent.is(Kind::kString)) format.indent = indent.text();
  if (indent.is_integer()) {
    RETURN_IF_ERROR(heap.CheckBytes(indent.integer()));
    format.indent =
        Text(std::string(static_cast<size_t>(std::max<int64_t>(indent.integer(), 0)), ' '));
  }
  if (format.indent) format.item_separator = Text(",");
  if (separators.is(Kind::kList)) {
    const auto& pair = separators.list().items;
    if (pair.size() != 2 || !pair[0].is(Kind::kString) || !pair[1].is(Kind::kString)) {
      return Error("tojson takes two strings as separators");
    }
    format.item_separator = pair[0].text();
    format.key_separator = pair[1].text();
  }
  ASSIGN_OR_RETURN(Text json, ToJson(heap, self, format));
  return heap.NewString(std::move(json));
}

/// Python's float(text); nothing if it is not a number.
std::optional<double> ParseFloat(std::string_view text) {
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

Text Stripped(const Value& value) { return Strip(value.text(), std::nullopt, Side::kBoth); }

Result FloatFilter(Heap&, const Value& self, const Args& args) {
  if (self.is(Kind::kUndefined)) return self.UndefinedError();
  if (self.is_number()) return Value::Float(self.number());
  if (self.is(Kind::kString)) {
    if (const auto number = ParseFloat(Stripped(self).view())) return Value::Float(*number);
  }
  return args.positional[0].is(Kind::kUndefined) ? Value::Float(0) : args.positional[0];
}

Result IntFilter(Heap&, const Value& self, const Args& args) {
  if (self.is(Kind::kUndefined)) return self.UndefinedError();
  if (self.is_integer()) return Value::Integer(self.integer());
  const Value otherwise =
      args.positional[0].is(Kind::kUndefined) ? Value::Integer(0) : args.positional[0];
  std::optional<double> number;
  if (self.is(Kind::kFloat)) number = self.number();
  if (self.is(Kind::kString)) {
    const Text stripped = Stripped(self);
    std::string_view digits = stripped.view();
    if (digits.starts_with('+') && !digits.starts_with("+-")) digits.remove_prefix(1);
    const Value& base = args.positional[1];
    if (base.is_integer() && (base.integer() < 2 || base.integer() > 36)) {
      return Error("int takes a base from 2 to 36, not {}", base.integer());
    }
    int64_t integer = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), integer,
                        base.is_integer() ? static_cast<int>(base.integer()) : 10);
    if (end == digits.data() + digits.size() && error == std::errc())
      return Value::Integer(integer);
    if (error == std::errc::result_out_of_range) return Error("'{}' is beyond 64 bits", digits);
    number = ParseFloat(digits);
  }
  if (!number || !std::isfinite(*number)) return otherwise;
  if (!(std::abs(*number) < 9.2e18)) return Error("{} is beyond 64 bits", *number);
  return Value::Integer(static_cast<int64_t>(*number));
}

Result RoundFilter(Heap&, const Value& self, const Args& args) {
  if (!self.is_number()) return Error("round takes a number, not '{}'", self.TypeName());
  const int64_t precision = args.positional[0].is_integer() ? args.positional[0].integer() : 0;
  if (precision < -300 || precision > 300) return Error("round to {} digits", precision);
  const bool named = args.positional[1].is(Kind::kString);
  const std::string_view method = named ? args.positional[1].text().view() : "common";
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value::Float(std::ceil(self.number() * scale) / scale);
  if (method == "floor") return Value::Float(std::floor(self.number() * scale) / scale);
  if (method != "common") return Error("round has no method '{}'", method);
  if (self.is_integer() && precision >= 0) return Value::Integer(self.integer());
  if (precision < 0) {
    const double rounded = std::nearbyint(self.number() * scale) / scale;
    if (!self.is_integer() || !(std::abs(rounded) < 9.2e18)) return Value::Float(rounded);
    return Value::Integer(static_cast<int64_t>(rounded));
  }
  return Value::Float(ParseFloat(fmt::format("{:.{}f}", self.number(), precision)).value_or(0));
}

Result AbsFilter(Heap&, const Value& self, const Args&) {
  if (!self.is_number()) return Error("abs takes a number, not '{}'", self.TypeName());
  return self.number() < 0 ? Negate(self) : Result(self);
}

Result DefaultFilter(Heap&, const Value& self, const Args& args) {
  const auto& [fallback, boolean] = std::tie(args.positional[0], args.positional[1]);
  const bool use = self.is(Kind::kUndefined) || (boolean.Truthy() && !self.Truthy());
  if (!use) return self;
  return fallback.is(Kind::kUndefined) ? Value::String(Text()) : fallback;
}

}  // namespace

const std::vector<Builtin>& TextFilters() {
  static const auto* const kFilters = new std::vector<Builtin>{
      {"string", StringFilter, {}},
      {"safe", StringFilter, {}},
      {"trim", TrimFilter, {"chars"}},
      {"upper", CaseFilter<Case::kUpper>, {}},
      {"lower", CaseFilter<Case::kLower>, {}},
      {"title", CaseFilter<Case::kWords>, {}},
      {"capitalize", CaseFilter<Case::kCapitalized>, {}},
      {"replace", ReplaceFilter, {"old", "new", "count"}, 2},
      {"indent", IndentFilter, {"width", "first", "blank"}},
      {"escape", EscapeFilter, {}},
      {"e", EscapeFilter, {}},
      {"wordcount", WordCountFilter, {}},
      {"format", FormatFilter, {}, 0, true},
      {"tojson", ToJsonFilter, {"ensure_ascii", "indent", "separators", "sort_keys"}},
      {"float", FloatFilter, {"default"}},
      {"int", IntFilter, {"default", "base"}},
      {"round", RoundFilter, {"precision", "method"}},
      {"abs", AbsFilter, {}},
      {"default", DefaultFilter, {"default_value", "boolean"}},
      {"d", DefaultFilter, {"default_value", "boolean"}},
  };
  return *kFilters;
}

}  // namespace shoal::jinja
