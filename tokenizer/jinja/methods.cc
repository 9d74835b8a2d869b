// Methods of strings, dicts and lists.
#include <algorithm>
#include <string>

#include "tokenizer/jinja/builtins.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/strings.h"
#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

using Result = absl::StatusOr<Value>;

absl::StatusOr<std::optional<Text>> OptionalText(const Value& value) {
  if (value.is(Kind::kUndefined) || value.is(Kind::kNone)) return std::nullopt;
  if (value.is(Kind::kString)) return value.text();
  return Error("expected a string, not '{}'", value.TypeName());
}

absl::StatusOr<Text> RequiredText(const Value& value) {
  if (value.is(Kind::kString)) return value.text();
  return Error("expected a string, not '{}'", value.TypeName());
}

absl::StatusOr<int64_t> OptionalInteger(const Value& value, int64_t otherwise) {
  if (value.is(Kind::kUndefined)) return otherwise;
  if (value.is_integer()) return value.integer();
  return Error("expected an integer, not '{}'", value.TypeName());
}

Result StringList(Heap& heap, std::vector<Text> texts) {
  std::vector<Value> values;
  for (Text& text : texts) {
    RETURN_IF_ERROR(heap.Spend(1));
    ASSIGN_OR_RETURN(values.emplace_back(), heap.NewString(std::move(text)));
  }
  return heap.NewList(std::move(values));
}

template <Side side>
Result StripMethod(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto characters, OptionalText(args.positional[0]));
  if (characters) {
    RETURN_IF_ERROR(
        heap.Spend(static_cast<int64_t>(self.text().size() * characters->size() / 256)));
  }
  return heap.NewString(Strip(self.text(), characters, side));
}

template <Side side>
Result SplitMethod(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto separator, OptionalText(args.positional[0]));
  ASSIGN_OR_RETURN(const int64_t limit, OptionalInteger(args.positional[1], -1));
  if (separator && separator->empty()) return Error("split at an empty separator");
  return StringList(heap, Split(self.text(), separator, limit, side));
}

Result SplitLinesMethod(Heap& heap, const Value& self, const Args& args) {
  return StringList(heap, SplitLines(self.text(), args.positional[0].Truthy()));
}

template <Case target>
Result CaseMethod(Heap& heap, const Value& self, const Args&) {
  return heap.NewString(ToCase(self.text(), target));
}

Result ReplaceMethod(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Text from, RequiredText(args.positional[0]));
  ASSIGN_OR_RETURN(const Text to, RequiredText(args.positional[1]));
  ASSIGN_OR_RETURN(const int64_t limit, OptionalInteger(args.positional[2], -1));
  ASSIGN_OR_RETURN(Text text, Replace(heap, self.text(), from, to, limit));
  return heap.NewString(std::move(text));
}

/// startswith, endswith: one string, or a tuple of which any will do.
template <bool at_start>
Result Affix(Heap& heap, const Value& self, const Args& args) {
  const Value& argument = args.positional[0];
  const auto matches = [&](const Value& affix) -> absl::StatusOr<bool> {
    ASSIGN_OR_RETURN(const Text text, RequiredText(affix));
    return at_start ? self.text().view().starts_with(text.view())
                    : self.text().view().ends_with(text.view());
  };
  std::vector<Value> affixes = {argument};
  if (argument.is(Kind::kList) && argument.list().is_tuple) affixes = argument.list().items;
  for (const Value& affix : affixes) {
    RETURN_IF_ERROR(heap.Spend(1 + Cost(affix)));
    ASSIGN_OR_RETURN(const bool matched, matches(affix));
    if (matched) return Value::Boolean(true);
  }
  return Value::Boolean(false);
}

template <bool at_start>
Result RemoveAffix(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Value matched, Affix<at_start>(heap, self, args));
  if (!matched.boolean()) return self;
  if (!args.positional[0].is(Kind::kString)) return Error("expected a string");
  const size_t size = args.positional[0].text().size();
  const size_t end = self.text().size();
  return heap.NewString(at_start ? self.text().Slice(size, end) : self.text().Slice(0, end - size));
}

template <bool from_right>
Result FindMethod(Heap&, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Text text, RequiredText(args.positional[0]));
  const std::string_view view = self.text().view();
  const size_t found = from_right ? view.rfind(text.view()) : view.find(text.view());
  if (found == std::string_view::npos) return Value::Integer(-1);
  return Value::Integer(CountCharacters(view.substr(0, found)));
}

Result CountMethod(Heap&, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Text text, RequiredText(args.positional[0]));
  if (text.empty()) return Value::Integer(CountCharacters(self.text().view()) + 1);
  int64_t count = 0;
  for (size_t at = 0; (at = self.text().view().find(text.view(), at)) != std::string_view::npos;) {
    ++count;
    at += text.size();
  }
  return Value::Integer(count);
}

Result JoinMethod(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto items, Iterate(heap, args.positional[0]));
  Text joined;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is(Kind::kString)) {
      return Error("join takes strings, and element {} is '{}'", i, items[i].TypeName());
    }
    if (i > 0) joined.Append(self.text());
    joined.Append(items[i].text());
    RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(joined.size())));
  }
  return heap.NewString(std::move(joined));
}

Result FormatMethod(Heap& heap, const Value& self, const Args& args) {
  return FormatBraces(heap, self.text(), args);
}

Result DictGet(Heap&, const Value& self, const Args& args) {
  if (const Value* found = self.dict().Find(args.positional[0])) return *found;
  return args.positional[1].is(Kind::kUndefined) ? Value::None() : args.positional[1];
}

Result DictKeys(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(auto keys, Iterate(heap, self));
  return heap.NewList(std::move(keys));
}

Result DictValues(Heap& heap, const Value& self, const Args&) {
  std::vector<Value> values;
  for (const auto& entry : self.dict().entries) values.push_back(entry.second);
  return heap.NewList(std::move(values));
}

Result DictItems(Heap& heap, const Value& self, const Args& args) {
  return Call(heap, *FindFilter("items"), self, args);
}

Result ListAppend(Heap& heap, const Value& self, const Args& args) {
  if (self.list().is_tuple) return Error("a tuple cannot be appended to");
  self.list().items.push_back(args.positional[0]);
  return Value::None();
}

const std::vector<Builtin>& StringMethods() {
  static const auto* const kMethods = new std::vector<Builtin>{
      {"strip", StripMethod<Side::kBoth>, {"chars"}},
      {"lstrip", StripMethod<Side::kLeft>, {"chars"}},
      {"rstrip", StripMethod<Side::kRight>, {"chars"}},
      {"split", SplitMethod<Side::kLeft>, {"sep", "maxsplit"}},
      {"rsplit", SplitMethod<Side::kRight>, {"sep", "maxsplit"}},
      {"splitlines", SplitLinesMethod, {"keepends"}},
      {"startswith", Affix<true>, {"prefix"}, 1},
      {"endswith", Affix<false>, {"suffix"}, 1},
      {"removeprefix", RemoveAffix<true>, {"prefix"}, 1},
      {"removesuffix", RemoveAffix<false>, {"suffix"}, 1},
      {"upper", CaseMethod<Case::kUpper>, {}},
      {"lower", CaseMethod<Case::kLower>, {}},
      {"title", CaseMethod<Case::kTitle>, {}},
      {"capitalize", CaseMethod<Case::kCapitalized>, {}},
      {"replace", ReplaceMethod, {"old", "new", "count"}, 2},
      {"find", FindMethod<false>, {"sub"}, 1},
      {"rfind", FindMethod<true>, {"sub"}, 1},
      {"count", CountMethod, {"sub"}, 1},
      {"join", JoinMethod, {"iterable"}, 1},
      {"format", FormatMethod, {}, 0, true},
  };
  return *kMethods;
}

const std::vector<Builtin>& DictMethods() {
  static const auto* const kMethods = new std::vector<Builtin>{
      {"get", DictGet, {"key", "default"}, 1},
      {"items", DictItems, {}},
      {"keys", DictKeys, {}},
      {"values", DictValues, {}},
  };
  return *kMethods;
}

const std::vector<Builtin>& ListMethods() {
  static const auto* const kMethods =
      new std::vector<Builtin>{{"append", ListAppend, {"object"}, 1}};
  return *kMethods;
}

const std::vector<Builtin>* MethodsOf(const Value& object) {
  if (object.is(Kind::kString)) return &StringMethods();
  if (object.is(Kind::kDict) && !object.dict().is_namespace) return &DictMethods();
  return object.is(Kind::kList) ? &ListMethods() : nullptr;
}

}  // namespace

std::optional<Value> BindMethod(Heap& heap, const Value& object, std::string_view name) {
  const auto* methods = MethodsOf(object);
  if (methods == nullptr) return std::nullopt;
  const auto method = std::ranges::find(*methods, name, &Builtin::name);
  if (method == methods->end()) return std::nullopt;
  return heap.NewCallable(std::string(name), [&heap, method, object](Args args) {
    return Call(heap, *method, object, std::move(args));
  });
}

}  // namespace shoal::jinja
