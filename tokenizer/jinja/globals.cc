// Global functions of templates.
#include <algorithm>
#include <ctime>
#include <string>

#include "tokenizer/jinja/builtins.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/print.h"

namespace shoal::jinja {
namespace {

using Result = absl::StatusOr<Value>;

Result Range(Heap& heap, const Value&, const Args& args) {
  const auto& given = args.positional;
  for (const Value& bound : given) {
    if (!bound.is_integer() && !bound.is(Kind::kUndefined)) {
      return Error("range takes integers, not '{}'", bound.TypeName());
    }
  }
  const bool single = given[1].is(Kind::kUndefined);
  const int64_t start = single ? 0 : given[0].integer();
  const int64_t stop = single ? given[0].integer() : given[1].integer();
  const int64_t step = given[2].is(Kind::kUndefined) ? 1 : given[2].integer();
  if (step == 0) return Error("the step of range is zero");
  const bool from_input = std::ranges::any_of(given, [](const Value& v) { return v.FromInput(); });
  std::vector<Value> numbers;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    RETURN_IF_ERROR(heap.Spend(1));
    numbers.push_back(Value::Integer(i, from_input));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return heap.NewList(std::move(numbers));
}

/// Adds the entries of a mapping, or of a list of pairs.
absl::Status Update(Heap& heap, const Value& source, Dict& dict) {
  if (source.is(Kind::kDict) && !source.dict().is_namespace) {
    for (const auto& [key, value] : source.dict().entries) {
      RETURN_IF_ERROR(heap.Spend(1 + static_cast<int64_t>(dict.entries.size() / 8)));
      dict.Set(key, value);
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const auto pairs, Iterate(heap, source));
  for (const Value& pair : pairs) {
    if (!pair.is(Kind::kList) || pair.list().items.size() != 2) {
      return Error("a dict is made from pairs, not from '{}'", pair.TypeName());
    }
    RETURN_IF_ERROR(heap.Spend(1 + static_cast<int64_t>(dict.entries.size() / 8)));
    RETURN_IF_ERROR(CheckKey(pair.list().items[0]));
    dict.Set(pair.list().items[0], pair.list().items[1]);
  }
  return absl::OkStatus();
}

template <bool is_namespace>
Result MakeDict(Heap& heap, const Value&, const Args& args) {
  if (args.positional.size() > 1) return Error("dict takes at most 1 positional argument");
  Dict* dict = heap.NewDict();
  for (const Value& source : args.positional) RETURN_IF_ERROR(Update(heap, source, *dict));
  for (const auto& [name, value] : args.keyword) dict->Set(name, value);
  dict->is_namespace = is_namespace;
  return Value::Of(dict);
}

Result RaiseException(Heap& heap, const Value&, const Args& args) {
  ASSIGN_OR_RETURN(const Text message, ToText(heap, args.positional[0]));
  return absl::InvalidArgumentError(std::string(message.view()));
}

Result StrftimeNow(Heap& heap, const Value&, const Args& args) {
  if (!args.positional[0].is(Kind::kString)) return Error("strftime_now takes a string");
  const Text& format = args.positional[0].text();
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[1024];
  const size_t size =
      std::strftime(buffer, sizeof buffer, std::string(format.view()).c_str(), &local);
  return heap.NewString(Text(std::string(buffer, size), format.FromInput()));
}

const std::vector<Builtin>& Globals() {
  static const auto* const kGlobals = new std::vector<Builtin>{
      {"range", Range, {"start", "stop", "step"}, 1},
      {"namespace", MakeDict<true>, {}, 0, true},
      {"dict", MakeDict<false>, {}, 0, true},
      {"raise_exception", RaiseException, {"message"}, 1},
      {"strftime_now", StrftimeNow, {"format"}, 1},
  };
  return *kGlobals;
}

}  // namespace

std::optional<Value> FindGlobal(Heap& heap, std::string_view name) {
  const auto global = std::ranges::find(Globals(), name, &Builtin::name);
  if (global == Globals().end()) return std::nullopt;
  return heap.NewCallable(std::string(name), [&heap, global](Args args) {
    return Call(heap, *global, Value(), std::move(args));
  });
}

}  // namespace shoal::jinja
