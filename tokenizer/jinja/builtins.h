// Functions that every template has: filters, tests, methods of strings, lists and dicts, globals.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/jinja/value.h"

namespace shoal::jinja {

/// One of them. `self` is what stands left of the `|`, `is` or dot; undefined for a global.
struct Builtin {
  using Function = absl::StatusOr<Value> (*)(Heap& heap, const Value& self, const Args& args);

  std::string_view name;
  Function function;
  /// The function gets one positional argument for each, undefined where left out.
  std::vector<std::string_view> parameters;
  size_t required = 0;    // the first so many cannot be left out
  bool variadic = false;  // the function gets the arguments as they are
};

/// By name; nullptr if there is none. Tests return booleans.
const Builtin* FindFilter(std::string_view name);
const Builtin* FindTest(std::string_view name);

/// The bound method `object.name`, if that kind of value has it.
std::optional<Value> BindMethod(Heap& heap, const Value& object, std::string_view name);

/// range, namespace, dict, raise_exception, strftime_now.
std::optional<Value> FindGlobal(Heap& heap, std::string_view name);

/// Binds `args` to the parameters and calls. What it computes from input is marked so.
/// INVALID_ARGUMENT: the arguments do not fit.
absl::StatusOr<Value> Call(Heap& heap, const Builtin& builtin, const Value& self, Args args);

}  // namespace shoal::jinja
