// What the operators of expressions do with values; Python's semantics.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/jinja/value.h"

namespace shoal::jinja {

enum class BinaryOp {
  kOr,
  kAnd,
  kAdd,
  kSubtract,
  kConcat,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower
};
enum class CompareOp { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

/// Every operator but `or`, `and`, which do not always need `b`. INVALID_ARGUMENT: wrong types,
/// division by zero, beyond 64 bits.
absl::StatusOr<Value> Apply(Heap& heap, BinaryOp op, const Value& a, const Value& b);
absl::StatusOr<Value> Negate(const Value& value);

absl::StatusOr<bool> Compare(Heap& heap, CompareOp op, const Value& a, const Value& b);
absl::StatusOr<bool> Equal(Heap& heap, const Value& a, const Value& b);
absl::StatusOr<bool> Less(Heap& heap, const Value& a, const Value& b);

/// What `for` sees: elements, keys or characters; nothing of an undefined value.
absl::StatusOr<std::vector<Value>> Iterate(Heap& heap, const Value& value);
absl::StatusOr<int64_t> Length(const Value& value);

/// object.name and object[key]; undefined if absent.
absl::StatusOr<Value> GetAttribute(Heap& heap, const Value& object, std::string_view name);
absl::StatusOr<Value> GetItem(Heap& heap, const Value& object, const Value& key);

/// object[start:stop:step]; undefined or none where left out.
struct SliceBounds {
  Value start, stop, step;
};
absl::StatusOr<Value> GetSlice(Heap& heap, const Value& object, const SliceBounds& bounds);

/// Steps of the budget that looking at all of `value` once costs.
int64_t Cost(const Value& value);

/// INVALID_ARGUMENT unless `key` can be a key of a dict.
absl::Status CheckKey(const Value& key);

}  // namespace shoal::jinja
