// Parts of values: attributes, items, slices, iteration.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "tokenizer/jinja/builtins.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

/// Resolves a negative index; nothing if out of range.
std::optional<size_t> Position(int64_t index, int64_t size) {
  if (index < 0) index += size;
  if (index < 0 || index >= size) return std::nullopt;
  return static_cast<size_t>(index);
}

absl::StatusOr<Value> StringItem(Heap& heap, const Text& text, int64_t index) {
  const auto offsets = CharacterOffsets(text.view());
  const auto position = Position(index, static_cast<int64_t>(offsets.size()) - 1);
  if (!position) return Value::Undefined(fmt::format("str has no element {}", index));
  return heap.NewString(text.Slice(offsets[*position], offsets[*position + 1]));
}

absl::StatusOr<std::optional<int64_t>> Bound(const Value& value) {
  if (value.is(Kind::kNone) || value.is(Kind::kUndefined)) return std::nullopt;
  if (value.is_integer()) return value.integer();
  return Error("a slice bound is a '{}', not an integer", value.TypeName());
}

/// Indices that a slice of `size` elements selects.
absl::StatusOr<std::vector<size_t>> SliceIndices(const SliceBounds& bounds, int64_t size) {
  ASSIGN_OR_RETURN(const auto start_bound, Bound(bounds.start));
  ASSIGN_OR_RETURN(const auto stop_bound, Bound(bounds.stop));
  ASSIGN_OR_RETURN(const auto step_bound, Bound(bounds.step));
  const int64_t step = std::clamp<int64_t>(step_bound.value_or(1), -size - 1, size + 1);
  if (step == 0) return Error("the step of a slice is zero");
  const int64_t low = step < 0 ? -1 : 0;
  const int64_t high = step < 0 ? size - 1 : size;
  const auto resolve = [&](std::optional<int64_t> bound, int64_t otherwise) {
    if (!bound) return otherwise;
    return std::clamp(*bound < 0 ? *bound + size : *bound, low, high);
  };
  const int64_t start = resolve(start_bound, step < 0 ? high : low);
  const int64_t stop = resolve(stop_bound, step < 0 ? low : high);
  std::vector<size_t> indices;
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
    indices.push_back(static_cast<size_t>(i));
  }
  return indices;
}

std::string Missing(const Value& object, std::string_view name) {
  return fmt::format("'{}' has no attribute '{}'", object.TypeName(), name);
}

/// An element by key or index; nullopt if there is none.
absl::StatusOr<std::optional<Value>> Element(Heap& heap, const Value& object, const Value& key) {
  RETURN_IF_ERROR(heap.Spend(Cost(object)));
  if (object.is(Kind::kDict) && !object.dict().is_namespace) {
    const Value* found = object.dict().Find(key);
    return found == nullptr ? std::nullopt : std::optional(*found);
  }
  if (!key.is_integer()) return std::nullopt;
  if (object.is(Kind::kList)) {
    const auto& items = object.list().items;
    const auto position = Position(key.integer(), static_cast<int64_t>(items.size()));
    return position ? std::optional(items[*position]) : std::nullopt;
  }
  if (object.is(Kind::kString)) return StringItem(heap, object.text(), key.integer());
  return std::nullopt;
}

/// A method, or an entry of a namespace.
std::optional<Value> Member(Heap& heap, const Value& object, std::string_view name) {
  if (object.is(Kind::kDict) && object.dict().is_namespace) {
    const Value* found = object.dict().Find(name);
    return found == nullptr ? std::nullopt : std::optional(*found);
  }
  return BindMethod(heap, object, name);
}

}  // namespace

absl::StatusOr<Value> GetAttribute(Heap& heap, const Value& object, std::string_view name) {
  if (object.is(Kind::kUndefined)) return object.UndefinedError();
  if (auto member = Member(heap, object, name)) return *std::move(member);
  if (object.is(Kind::kDict) && !object.dict().is_namespace) {
    RETURN_IF_ERROR(heap.Spend(Cost(object)));
    if (const Value* found = object.dict().Find(name)) return *found;
  }
  return Value::Undefined(Missing(object, name));
}

absl::StatusOr<Value> GetItem(Heap& heap, const Value& object, const Value& key) {
  if (object.is(Kind::kUndefined)) return object.UndefinedError();
  ASSIGN_OR_RETURN(auto element, Element(heap, object, key));
  if (element) return *std::move(element);
  if (!key.is(Kind::kString)) {
    return Value::Undefined(fmt::format("'{}' has no such element", object.TypeName()));
  }
  if (auto member = Member(heap, object, key.text().view())) return *std::move(member);
  return Value::Undefined(Missing(object, key.text().view()));
}

absl::StatusOr<Value> GetSlice(Heap& heap, const Value& object, const SliceBounds& bounds) {
  if (object.is(Kind::kUndefined)) return object.UndefinedError();
  RETURN_IF_ERROR(heap.Spend(Cost(object)));
  if (object.is(Kind::kList)) {
    const auto& items = object.list().items;
    ASSIGN_OR_RETURN(const auto indices, SliceIndices(bounds, static_cast<int64_t>(items.size())));
    std::vector<Value> selected;
    selected.reserve(indices.size());
    for (const size_t i : indices) selected.push_back(items[i]);
    return heap.NewList(std::move(selected), object.list().is_tuple);
  }
  if (!object.is(Kind::kString)) {
    return Value::Undefined(fmt::format("'{}' has no slices", object.TypeName()));
  }
  const auto offsets = CharacterOffsets(object.text().view());
  ASSIGN_OR_RETURN(const auto indices,
                   SliceIndices(bounds, static_cast<int64_t>(offsets.size()) - 1));
  Text text;
  for (const size_t i : indices) text.Append(object.text(), offsets[i], offsets[i + 1]);
  return heap.NewString(std::move(text));
}

absl::StatusOr<std::vector<Value>> Iterate(Heap& heap, const Value& value) {
  std::vector<Value> items;
  if (value.is(Kind::kUndefined)) return items;
  if (value.is(Kind::kList)) {
    RETURN_IF_ERROR(heap.Spend(static_cast<int64_t>(value.list().items.size())));
    return value.list().items;
  }
  if (value.is(Kind::kDict) && !value.dict().is_namespace) {
    RETURN_IF_ERROR(heap.Spend(static_cast<int64_t>(value.dict().entries.size())));
    for (const auto& [key, unused] : value.dict().entries) items.push_back(key);
    return items;
  }
  if (!value.is(Kind::kString)) return Error("a '{}' cannot be iterated", value.TypeName());
  const Text& text = value.text();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = begin + CharacterAt(text.view(), begin).size;
    RETURN_IF_ERROR(heap.Spend(1));
    ASSIGN_OR_RETURN(items.emplace_back(), heap.NewString(text.Slice(begin, end)));
    begin = end;
  }
  return items;
}

absl::StatusOr<int64_t> Length(const Value& value) {
  if (value.is(Kind::kUndefined)) return 0;
  if (value.is(Kind::kString)) return CountCharacters(value.text().view());
  if (value.is(Kind::kList)) return static_cast<int64_t>(value.list().items.size());
  if (value.is(Kind::kDict) && !value.dict().is_namespace) {
    return static_cast<int64_t>(value.dict().entries.size());
  }
  return Error("a '{}' has no length", value.TypeName());
}

}  // namespace shoal::jinja
