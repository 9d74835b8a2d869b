// str.format and the % operator of strings.
#include <charconv>
#include <cmath>

#include "tokenizer/jinja/print.h"
#include "tokenizer/jinja/strings.h"

namespace shoal::jinja {
namespace {

constexpr int kMaxWidth = 1000;

/// Appends the field {name}; `next` numbers the fields without a name.
absl::Status AppendField(Heap& heap, std::string_view name, const Args& args, size_t& next,
                         Text& out) {
  const Value* value = nullptr;
  size_t index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (name.empty()) index = next++;
  if (name.empty() || (error == std::errc() && end == name.data() + name.size())) {
    if (index < args.positional.size()) value = &args.positional[index];
  } else {
    for (const auto& [keyword, argument] : args.keyword) {
      if (keyword == name) value = &argument;
    }
  }
  if (value == nullptr) return Error("format has no argument for the field '{{{}}}'", name);
  ASSIGN_OR_RETURN(const Text text, ToText(heap, *value));
  out.Append(text);
  return heap.CheckBytes(static_cast<int64_t>(out.size()));
}

/// What stands between % and the letter.
struct Specification {
  bool zero = false;
  bool left = false;
  int width = 0;
  int precision = -1;
};

absl::StatusOr<int> ReadNumber(std::string_view format, size_t& position) {
  int number = 0;
  const char* begin = format.data() + position;
  const auto [end, error] = std::from_chars(begin, format.data() + format.size(), number);
  if (end == begin) return 0;
  if (error != std::errc() || number > kMaxWidth) {
    return Error("a width in a format is above {}", kMaxWidth);
  }
  position += static_cast<size_t>(end - begin);
  return number;
}

absl::StatusOr<Specification> ReadSpecification(std::string_view format, size_t& position) {
  Specification specification;
  for (; position < format.size(); ++position) {
    if (format[position] == '0') {
      specification.zero = true;
    } else if (format[position] == '-') {
      specification.left = true;
    } else {
      break;
    }
  }
  ASSIGN_OR_RETURN(specification.width, ReadNumber(format, position));
  if (position < format.size() && format[position] == '.') {
    ++position;
    ASSIGN_OR_RETURN(specification.precision, ReadNumber(format, position));
  }
  return specification;
}

absl::StatusOr<Text> Convert(Heap& heap, char letter, const Specification& specification,
                             const Value& value) {
  if (letter == 's') return ToText(heap, value);
  if (!value.is_number())
    return Error("format %{} needs a number, not '{}'", letter, value.TypeName());
  if (letter == 'f') {
    const int precision = specification.precision < 0 ? 6 : specification.precision;
    return Text(fmt::format("{:.{}f}", value.number(), precision), value.FromInput());
  }
  if (value.is_integer()) return Text(fmt::format("{}", value.integer()), value.FromInput());
  if (!(std::abs(value.number()) < 9e18)) return Error("format %{} needs an integer", letter);
  return Text(fmt::format("{}", static_cast<int64_t>(value.number())), value.FromInput());
}

void AppendPadded(const Text& text, const Specification& specification, bool number, Text& out) {
  const auto width = static_cast<size_t>(specification.width);
  const std::string padding(width > text.size() ? width - text.size() : 0,
                            number && specification.zero && !specification.left ? '0' : ' ');
  const size_t sign = padding.starts_with('0') && text.view().starts_with('-') ? 1 : 0;
  if (specification.left) {
    out.Append(text);
    out.Append(padding, false);
    return;
  }
  out.Append(text, 0, sign);
  out.Append(padding, false);
  out.Append(text, sign, text.size());
}

}  // namespace

absl::StatusOr<Value> FormatBraces(Heap& heap, const Text& format, const Args& args) {
  const std::string_view view = format.view();
  Text out;
  size_t next = 0;
  for (size_t i = 0; i < view.size();) {
    const size_t brace = std::min(view.find_first_of("{}", i), view.size());
    out.Append(format, i, brace);
    if (brace == view.size()) break;
    if (brace + 1 < view.size() && view[brace + 1] == view[brace]) {
      out.Append(format, brace, brace + 1);
      i = brace + 2;
      continue;
    }
    const size_t close = view[brace] == '{' ? view.find('}', brace) : std::string_view::npos;
    if (close == std::string_view::npos) return Error("format has a single '{}'", view[brace]);
    const std::string_view name = view.substr(brace + 1, close - brace - 1);
    if (name.find_first_of(":!.[{") != std::string_view::npos) {
      return Error("format supports only plain fields, not '{{{}}}'", name);
    }
    RETURN_IF_ERROR(AppendField(heap, name, args, next, out));
    i = close + 1;
  }
  return heap.NewString(std::move(out));
}

absl::StatusOr<Value> FormatPercent(Heap& heap, const Text& format, std::span<const Value> values) {
  const std::string_view view = format.view();
  Text out;
  size_t used = 0;
  for (size_t i = 0; i < view.size();) {
    const size_t percent = std::min(view.find('%', i), view.size());
    out.Append(format, i, percent);
    if (percent == view.size()) break;
    i = percent + 1;
    if (i < view.size() && view[i] == '%') {
      out.Append(format, i, i + 1);
      ++i;
      continue;
    }
    ASSIGN_OR_RETURN(const Specification specification, ReadSpecification(view, i));
    const char letter = i < view.size() ? view[i] : '\0';
    if (letter != 's' && letter != 'd' && letter != 'i' && letter != 'f') {
      return Error("format supports %s, %d, %i and %f only");
    }
    ++i;
    if (used == values.size()) return Error("not enough arguments for the format");
    ASSIGN_OR_RETURN(const Text text, Convert(heap, letter, specification, values[used]));
    ++used;
    AppendPadded(text, specification, letter != 's', out);
    RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(out.size())));
  }
  if (used < values.size()) return Error("not all arguments of the format were used");
  return heap.NewString(std::move(out));
}

}  // namespace shoal::jinja
