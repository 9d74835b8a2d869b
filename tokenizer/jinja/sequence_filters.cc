// Filters of lists and dicts.
#include <algorithm>
#include <charconv>
#include <string>

#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/print.h"
#include "tokenizer/jinja/strings.h"

namespace shoal::jinja {
namespace {

using Result = absl::StatusOr<Value>;

/// `item` followed along `path`: an index, or names and indices with dots between.
Result Follow(Heap& heap, Value item, const Value& path) {
  if (!path.is(Kind::kString)) return GetItem(heap, item, path);
  for (Text& part : Split(path.text(), Text("."), -1, Side::kLeft)) {
    const std::string_view view = part.view();
    int64_t index = 0;
    const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), index);
    const bool is_index = error == std::errc() && end == view.data() + view.size();
    const Value key = is_index ? Value::Integer(index) : Value::String(std::move(part));
    ASSIGN_OR_RETURN(item, GetItem(heap, item, key));
  }
  return item;
}

/// What sorting and comparing look at: the attribute if one is named, in lower case unless told.
Result SortKey(Heap& heap, const Value& item, const Value& attribute, bool case_sensitive) {
  Value key = item;
  if (!attribute.is(Kind::kUndefined) && !attribute.is(Kind::kNone)) {
    ASSIGN_OR_RETURN(key, Follow(heap, item, attribute));
  }
  if (case_sensitive || !key.is(Kind::kString)) return key;
  return heap.NewString(ToCase(key.text(), Case::kLower));
}

struct Keyed {
  Value key;
  Value item;
};

/// Stable; `reverse` keeps the order of equal keys too. A merge sort, since a comparison can fail.
absl::StatusOr<std::vector<Keyed>> Sort(Heap& heap, std::vector<Keyed> items, bool reverse) {
  std::vector<Keyed> merged;
  for (size_t width = 1; width < items.size(); width *= 2) {
    merged.clear();
    for (size_t low = 0; low < items.size(); low += 2 * width) {
      size_t left = low;
      size_t right = std::min(low + width, items.size());
      const size_t middle = right;
      const size_t high = std::min(low + 2 * width, items.size());
      while (left < middle && right < high) {
        const auto &a = items[left].key, &b = items[right].key;
        ASSIGN_OR_RETURN(const bool swap, reverse ? Less(heap, a, b) : Less(heap, b, a));
        merged.push_back(items[swap ? right++ : left++]);
      }
      while (left < middle) merged.push_back(items[left++]);
      while (right < high) merged.push_back(items[right++]);
    }
    std::swap(items, merged);
  }
  return items;
}

absl::StatusOr<std::vector<Keyed>> WithKeys(Heap& heap, const Value& self, const Value& attribute,
                                            bool case_sensitive) {
  ASSIGN_OR_RETURN(auto items, Iterate(heap, self));
  std::vector<Keyed> keyed;
  for (Value& item : items) {
    ASSIGN_OR_RETURN(Value key, SortKey(heap, item, attribute, case_sensitive));
    keyed.push_back({std::move(key), std::move(item)});
  }
  return keyed;
}

Result ItemList(Heap& heap, std::vector<Keyed> keyed) {
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return heap.NewList(std::move(items));
}

Result SortFilter(Heap& heap, const Value& self, const Args& args) {
  const auto& [reverse, sensitive, attribute] =
      std::tie(args.positional[0], args.positional[1], args.positional[2]);
  ASSIGN_OR_RETURN(auto keyed, WithKeys(heap, self, attribute, sensitive.Truthy()));
  ASSIGN_OR_RETURN(keyed, Sort(heap, std::move(keyed), reverse.Truthy()));
  return ItemList(heap, std::move(keyed));
}

Result UniqueFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(auto keyed,
                   WithKeys(heap, self, args.positional[1], args.positional[0].Truthy()));
  std::vector<Keyed> kept;
  for (Keyed& entry : keyed) {
    bool seen = false;
    for (size_t i = 0; i < kept.size() && !seen; ++i) {
      ASSIGN_OR_RETURN(seen, Equal(heap, kept[i].key, entry.key));
    }
    if (!seen) kept.push_back(std::move(entry));
  }
  return ItemList(heap, std::move(kept));
}

template <bool smallest>
Result ExtremeFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto keyed,
                   WithKeys(heap, self, args.positional[1], args.positional[0].Truthy()));
  if (keyed.empty()) return Value::Undefined("the sequence is empty");
  const Keyed* best = &keyed[0];
  for (const Keyed& entry : keyed) {
    ASSIGN_OR_RETURN(const bool better, smallest ? Less(heap, entry.key, best->key)
                                                 : Less(heap, best->key, entry.key));
    if (better) best = &entry;
  }
  return best->item;
}

Result LengthFilter(Heap&, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const int64_t length, Length(self));
  return Value::Integer(length);
}

template <bool first>
Result EndFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const auto items, Iterate(heap, self));
  if (items.empty()) return Value::Undefined("the sequence is empty");
  return first ? items.front() : items.back();
}

Result ListFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(auto items, Iterate(heap, self));
  return heap.NewList(std::move(items));
}

Result ReverseFilter(Heap& heap, const Value& self, const Args&) {
  if (self.is(Kind::kString)) {
    return GetSlice(heap, self, {Value(), Value(), Value::Integer(-1)});
  }
  ASSIGN_OR_RETURN(auto items, Iterate(heap, self));
  std::ranges::reverse(items);
  return heap.NewList(std::move(items));
}

Result JoinFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto items, Iterate(heap, self));
  ASSIGN_OR_RETURN(const Text separator, ToText(heap, args.positional[0]));
  Text joined;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (!args.positional[1].is(Kind::kUndefined)) {
      ASSIGN_OR_RETURN(item, Follow(heap, item, args.positional[1]));
    }
    ASSIGN_OR_RETURN(const Text text, ToText(heap, item));
    if (i > 0) joined.Append(separator);
    joined.Append(text);
    RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(joined.size())));
  }
  return heap.NewString(std::move(joined));
}

Result SumFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const auto items, Iterate(heap, self));
  Value sum = args.positional[1].is(Kind::kUndefined) ? Value::Integer(0) : args.positional[1];
  for (const Value& item : items) {
    Value addend = item;
    if (!args.positional[0].is(Kind::kUndefined)) {
      ASSIGN_OR_RETURN(addend, Follow(heap, item, args.positional[0]));
    }
    ASSIGN_OR_RETURN(sum, Apply(heap, BinaryOp::kAdd, sum, addend));
  }
  return sum;
}

absl::StatusOr<std::vector<Value>> Pairs(Heap& heap, const Value& self) {
  std::vector<Value> pairs;
  if (self.is(Kind::kUndefined)) return pairs;
  if (!self.is(Kind::kDict) || self.dict().is_namespace) {
    return Error("expected a dict, not '{}'", self.TypeName());
  }
  for (const auto& [key, value] : self.dict().entries) {
    ASSIGN_OR_RETURN(pairs.emplace_back(), heap.NewList({key, value}, true));
  }
  return pairs;
}

Result ItemsFilter(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(auto pairs, Pairs(heap, self));
  return heap.NewList(std::move(pairs));
}

Result DictSortFilter(Heap& heap, const Value& self, const Args& args) {
  const auto& [sensitive, by, reverse] =
      std::tie(args.positional[0], args.positional[1], args.positional[2]);
  const std::string_view column = by.is(Kind::kString) ? by.text().view() : "key";
  if (column != "key" && column != "value") return Error("dictsort sorts by key or value");
  if (self.is(Kind::kUndefined)) return self.UndefinedError();
  ASSIGN_OR_RETURN(auto pairs, Pairs(heap, self));
  const Value index = Value::Integer(column == "value" ? 1 : 0);
  ASSIGN_OR_RETURN(const Value list, heap.NewList(std::move(pairs)));
  ASSIGN_OR_RETURN(auto keyed, WithKeys(heap, list, index, sensitive.Truthy()));
  ASSIGN_OR_RETURN(keyed, Sort(heap, std::move(keyed), reverse.Truthy()));
  return ItemList(heap, std::move(keyed));
}

Result BatchFilter(Heap& heap, const Value& self, const Args& args) {
  const Value& size = args.positional[0];
  const Value& fill = args.positional[1];
  if (!size.is_integer() || size.integer() < 1) return Error("batch takes a positive line count");
  ASSIGN_OR_RETURN(const auto items, Iterate(heap, self));
  std::vector<Value> lines;
  std::vector<Value> line;
  for (const Value& item : items) {
    line.push_back(item);
    if (static_cast<int64_t>(line.size()) < size.integer()) continue;
    ASSIGN_OR_RETURN(lines.emplace_back(), heap.NewList(std::move(line)));
    line.clear();
  }
  if (!line.empty()) {
    const bool filled = !fill.is(Kind::kUndefined) && !fill.is(Kind::kNone);
    RETURN_IF_ERROR(heap.Spend(filled ? size.integer() : 0));
    if (filled) line.resize(static_cast<size_t>(size.integer()), fill);
    ASSIGN_OR_RETURN(lines.emplace_back(), heap.NewList(std::move(line)));
  }
  return heap.NewList(std::move(lines));
}

/// The builtin that the argument at `index` names, and the arguments after it.
template <typename Find>
absl::StatusOr<std::pair<const Builtin*, Args>> Named(const Args& args, size_t index, Find find) {
  const Value& name = args.positional[index];
  const Builtin* builtin = name.is(Kind::kString) ? find(name.text().view()) : nullptr;
  if (builtin == nullptr) {
    return Error("there is no filter or test '{}'",
                 name.is(Kind::kString) ? name.text().view() : name.TypeName());
  }
  Args rest{
      {args.positional.begin() + static_cast<std::ptrdiff_t>(index) + 1, args.positional.end()},
      args.keyword};
  return std::pair(builtin, std::move(rest));
}

Result MapFilter(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(auto items, Iterate(heap, self));
  if (!args.positional.empty()) {
    ASSIGN_OR_RETURN(const auto filter, Named(args, 0, FindFilter));
    for (Value& item : items) {
      ASSIGN_OR_RETURN(item, Call(heap, *filter.first, item, filter.second));
    }
    return heap.NewList(std::move(items));
  }
  Value attribute, fallback;
  for (const auto& [name, value] : args.keyword) {
    if (name != "attribute" && name != "default") return Error("map has no parameter '{}'", name);
    (name == "attribute" ? attribute : fallback) = value;
  }
  if (attribute.is(Kind::kUndefined)) return Error("map needs a filter or an attribute");
  for (Value& item : items) {
    ASSIGN_OR_RETURN(item, Follow(heap, item, attribute));
    if (item.is(Kind::kUndefined) && !fallback.is(Kind::kUndefined)) item = fallback;
  }
  return heap.NewList(std::move(items));
}

/// select, reject and, with `by_attribute`, selectattr, rejectattr.
template <bool keep, bool by_attribute>
Result SelectFilter(Heap& heap, const Value& self, const Args& args) {
  constexpr size_t kTest = by_attribute ? 1 : 0;
  if (args.positional.size() < kTest) return Error("selectattr needs the name of an attribute");
  ASSIGN_OR_RETURN(const auto items, Iterate(heap, self));
  std::pair<const Builtin*, Args> test{};
  if (args.positional.size() > kTest) {
    ASSIGN_OR_RETURN(test, Named(args, kTest, FindTest));
  }
  std::vector<Value> selected;
  for (const Value& item : items) {
    Value tested = item;
    if (by_attribute) {
      ASSIGN_OR_RETURN(tested, Follow(heap, item, args.positional[0]));
    }
    if (test.first != nullptr) {
      ASSIGN_OR_RETURN(tested, Call(heap, *test.first, tested, test.second));
    }
    if (tested.Truthy() == keep) selected.push_back(item);
  }
  return heap.NewList(std::move(selected));
}

}  // namespace

const std::vector<Builtin>& SequenceFilters() {
  static const auto* const kFilters = new std::vector<Builtin>{
      {"length", LengthFilter, {}},
      {"count", LengthFilter, {}},
      {"first", EndFilter<true>, {}},
      {"last", EndFilter<false>, {}},
      {"list", ListFilter, {}},
      {"reverse", ReverseFilter, {}},
      {"join", JoinFilter, {"d", "attribute"}},
      {"sum", SumFilter, {"attribute", "start"}},
      {"min", ExtremeFilter<true>, {"case_sensitive", "attribute"}},
      {"max", ExtremeFilter<false>, {"case_sensitive", "attribute"}},
      {"sort", SortFilter, {"reverse", "case_sensitive", "attribute"}},
      {"unique", UniqueFilter, {"case_sensitive", "attribute"}},
      {"items", ItemsFilter, {}},
      {"dictsort", DictSortFilter, {"case_sensitive", "by", "reverse"}},
      {"batch", BatchFilter, {"linecount", "fill_with"}, 1},
      {"map", MapFilter, {}, 0, true},
      {"select", SelectFilter<true, false>, {}, 0, true},
      {"reject", SelectFilter<false, false>, {}, 0, true},
      {"selectattr", SelectFilter<true, true>, {}, 0, true},
      {"rejectattr", SelectFilter<false, true>, {}, 0, true},
  };
  return *kFilters;
}

}  // namespace shoal::jinja
