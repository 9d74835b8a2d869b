#include "tokenizer/jinja/operators.h"

#include <cmath>
#include <string>

#include "tokenizer/jinja/print.h"
#include "tokenizer/jinja/strings.h"

namespace shoal::jinja {
namespace {

std::string_view Symbol(BinaryOp op) {
  switch (op) {
    case BinaryOp::kOr:
      return "or";
    case BinaryOp::kAnd:
      return "and";
    case BinaryOp::kAdd:
      return "+";
    case BinaryOp::kSubtract:
      return "-";
    case BinaryOp::kConcat:
      return "~";
    case BinaryOp::kMultiply:
      return "*";
    case BinaryOp::kDivide:
      return "/";
    case BinaryOp::kFloorDivide:
      return "//";
    case BinaryOp::kModulo:
      return "%";
    case BinaryOp::kPower:
      return "**";
  }
  return "";
}

absl::Status WrongTypes(std::string_view op, const Value& a, const Value& b) {
  if (a.is(Kind::kUndefined)) return a.UndefinedError();
  if (b.is(Kind::kUndefined)) return b.UndefinedError();
  return Error("operator {} does not take '{}' and '{}'", op, a.TypeName(), b.TypeName());
}

std::optional<int64_t> Power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (true) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return std::nullopt;
    exponent >>= 1;
    if (exponent == 0) return result;
    if (__builtin_mul_overflow(base, base, &base)) return std::nullopt;
  }
}

/// Rounds down; b is not 0 and the quotient fits.
int64_t FloorDivide(int64_t a, int64_t b) {
  return a / b - static_cast<int64_t>(a % b != 0 && (a < 0) != (b < 0));
}

/// Nothing if the result is beyond 64 bits. b is not 0 for the divisions.
std::optional<int64_t> ApplyToIntegers(BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case BinaryOp::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case BinaryOp::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case BinaryOp::kPower:
      return Power(a, b);
    case BinaryOp::kFloorDivide:
      overflow = a == INT64_MIN && b == -1;
      if (!overflow) result = FloorDivide(a, b);
      break;
    default:  // kModulo has the sign of b
      if (b != -1) result = a % b;
      if (result != 0 && (result < 0) != (b < 0)) result += b;
  }
  return overflow ? std::nullopt : std::optional(result);
}

double ApplyToFloats(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return a + b;
    case BinaryOp::kSubtract:
      return a - b;
    case BinaryOp::kMultiply:
      return a * b;
    case BinaryOp::kDivide:
      return a / b;
    case BinaryOp::kPower:
      return std::pow(a, b);
    case BinaryOp::kFloorDivide:
      return std::floor(a / b);
    default: {  // kModulo
      const double remainder = std::fmod(a, b);
      return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
    }
  }
}

absl::StatusOr<Value> ApplyToNumbers(BinaryOp op, const Value& a, const Value& b) {
  const bool from_input = a.FromInput() || b.FromInput();
  const bool divides =
      op == BinaryOp::kDivide || op == BinaryOp::kFloorDivide || op == BinaryOp::kModulo;
  if (divides && b.number() == 0) return Error("division by zero");
  const bool integers = a.is_integer() && b.is_integer() && op != BinaryOp::kDivide &&
                        !(op == BinaryOp::kPower && b.integer() < 0);
  if (!integers) return Value::Float(ApplyToFloats(op, a.number(), b.number()), from_input);
  const auto result = ApplyToIntegers(op, a.integer(), b.integer());
  if (!result) {
    return Error("{} {} {} is beyond 64 bits", a.integer(), Symbol(op), b.integer());
  }
  return Value::Integer(*result, from_input);
}

absl::StatusOr<Value> Concatenate(Heap& heap, const Text& a, const Text& b) {
  RETURN_IF_ERROR(heap.CheckBytes(static_cast<int64_t>(a.size() + b.size())));
  Text text = a;
  text.Append(b);
  return heap.NewString(std::move(text));
}

absl::StatusOr<Value> Repeat(Heap& heap, const Value& value, int64_t count) {
  int64_t total = 0;
  if (count < 0) count = 0;
  if (value.is(Kind::kString)) {
    const auto size = static_cast<int64_t>(value.text().size());
    if (__builtin_mul_overflow(size, count, &total)) total = INT64_MAX;
    RETURN_IF_ERROR(heap.CheckBytes(total));
    Text text;
    for (int64_t i = 0; i < count && size > 0; ++i) text.Append(value.text());
    return heap.NewString(std::move(text));
  }
  const auto& items = value.list().items;
  if (__builtin_mul_overflow(static_cast<int64_t>(items.size()), count, &total)) total = INT64_MAX;
  RETURN_IF_ERROR(heap.Spend(total));
  std::vector<Value> repeated;
  for (int64_t i = 0; i < count && !items.empty(); ++i) {
    repeated.insert(repeated.end(), items.begin(), items.end());
  }
  return heap.NewList(std::move(repeated), value.list().is_tuple);
}

bool Repeatable(const Value& value) { return value.is(Kind::kString) || value.is(Kind::kList); }

absl::StatusOr<bool> EqualContainers(Heap& heap, const Value& a, const Value& b) {
  if (a.is(Kind::kList)) {
    const auto &left = a.list().items, &right = b.list().items;
    if (a.list().is_tuple != b.list().is_tuple || left.size() != right.size()) return false;
    for (size_t i = 0; i < left.size() && i < right.size(); ++i) {
      ASSIGN_OR_RETURN(const bool equal, Equal(heap, left[i], right[i]));
      if (!equal) return false;
    }
    return true;
  }
  if (a.dict().is_namespace || b.dict().is_namespace) return &a.dict() == &b.dict();
  if (a.dict().entries.size() != b.dict().entries.size()) return false;
  for (const auto& [key, value] : a.dict().entries) {
    RETURN_IF_ERROR(heap.Spend(Cost(b)));
    const Value* other = b.dict().Find(key);
    if (other == nullptr) return false;
    ASSIGN_OR_RETURN(const bool equal, Equal(heap, value, *other));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<bool> Contains(Heap& heap, const Value& container, const Value& item) {
  RETURN_IF_ERROR(heap.Spend(Cost(container)));
  switch (container.kind()) {
    case Kind::kUndefined:
      return false;
    case Kind::kString:
      if (item.is(Kind::kString)) {
        return container.text().view().find(item.text().view()) != std::string_view::npos;
      }
      break;
    case Kind::kList:
      for (const Value& element : container.list().items) {
        ASSIGN_OR_RETURN(const bool equal, Equal(heap, element, item));
        if (equal) return true;
      }
      return false;
    case Kind::kDict:
      if (container.dict().is_namespace) break;
      return container.dict().Find(item) != nullptr;
    default:
      break;
  }
  return WrongTypes("in", item, container);
}

}  // namespace

int64_t Cost(const Value& value) {
  switch (value.kind()) {
    case Kind::kString:
      return value.text().cost();
    case Kind::kList:
      return static_cast<int64_t>(value.list().items.size() / 8);
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries.size() / 8);
    default:
      return 0;
  }
}

absl::Status CheckKey(const Value& key) {
  if (key.is(Kind::kString) || key.is(Kind::kNone) || key.is_number()) return absl::OkStatus();
  if (key.is(Kind::kUndefined)) return key.UndefinedError();
  return Error("a '{}' cannot be the key of a dict", key.TypeName());
}

absl::StatusOr<Value> Apply(Heap& heap, BinaryOp op, const Value& a, const Value& b) {
  if (op == BinaryOp::kConcat) {
    ASSIGN_OR_RETURN(const Text left, ToText(heap, a));
    ASSIGN_OR_RETURN(const Text right, ToText(heap, b));
    return Concatenate(heap, left, right);
  }
  if (a.is_number() && b.is_number()) return ApplyToNumbers(op, a, b);
  if (op == BinaryOp::kAdd && a.is(Kind::kString) && b.is(Kind::kString)) {
    return Concatenate(heap, a.text(), b.text());
  }
  if (op == BinaryOp::kAdd && a.is(Kind::kList) && b.is(Kind::kList) &&
      a.list().is_tuple == b.list().is_tuple) {
    RETURN_IF_ERROR(heap.Spend(Cost(a) + Cost(b)));
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return heap.NewList(std::move(items), a.list().is_tuple);
  }
  if (op == BinaryOp::kMultiply) {
    if (Repeatable(a) && b.is_integer()) return Repeat(heap, a, b.integer());
    if (a.is_integer() && Repeatable(b)) return Repeat(heap, b, a.integer());
  }
  if (op == BinaryOp::kModulo && a.is(Kind::kString)) {
    if (b.is(Kind::kList) && b.list().is_tuple)
      return FormatPercent(heap, a.text(), b.list().items);
    return FormatPercent(heap, a.text(), {&b, 1});
  }
  return WrongTypes(Symbol(op), a, b);
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (!value.is_number()) return WrongTypes("-", value, value);
  return ApplyToNumbers(BinaryOp::kSubtract, Value::Integer(0), value);
}

absl::StatusOr<bool> Equal(Heap& heap, const Value& a, const Value& b) {
  Heap::Level level(heap);
  RETURN_IF_ERROR(level.Enter());
  if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  if (a.is_container()) return EqualContainers(heap, a, b);
  if (a.is(Kind::kString)) {
    RETURN_IF_ERROR(heap.Spend(Cost(a)));
    return a.text().view() == b.text().view();
  }
  if (a.is(Kind::kCallable)) return &a.callable() == &b.callable();
  return true;  // none and undefined
}

absl::StatusOr<bool> Less(Heap& heap, const Value& a, const Value& b) {
  Heap::Level level(heap);
  RETURN_IF_ERROR(level.Enter());
  if (a.is_integer() && b.is_integer()) return a.integer() < b.integer();
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  if (a.is(Kind::kString) && b.is(Kind::kString)) {
    RETURN_IF_ERROR(heap.Spend(Cost(a)));
    return a.text().view() < b.text().view();
  }
  if (!a.is(Kind::kList) || !b.is(Kind::kList)) return WrongTypes("<", a, b);
  const auto &left = a.list().items, &right = b.list().items;
  for (size_t i = 0; i < left.size() && i < right.size(); ++i) {
    ASSIGN_OR_RETURN(const bool equal, Equal(heap, left[i], right[i]));
    if (!equal) return Less(heap, left[i], right[i]);
  }
  return left.size() < right.size();
}

absl::StatusOr<bool> Compare(Heap& heap, CompareOp op, const Value& a, const Value& b) {
  const auto negated = [](absl::StatusOr<bool> result) {
    if (result.ok()) *result = !*result;
    return result;
  };
  switch (op) {
    case CompareOp::kEqual:
      return Equal(heap, a, b);
    case CompareOp::kNotEqual:
      return negated(Equal(heap, a, b));
    case CompareOp::kLess:
      return Less(heap, a, b);
    case CompareOp::kLessEqual:
      return negated(Less(heap, b, a));
    case CompareOp::kGreater:
      return Less(heap, b, a);
    case CompareOp::kGreaterEqual:
      return negated(Less(heap, a, b));
    case CompareOp::kIn:
      return Contains(heap, b, a);
    case CompareOp::kNotIn:
      return negated(Contains(heap, b, a));
  }
  return false;
}

}  // namespace shoal::jinja
