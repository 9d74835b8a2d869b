// JsonReader: a JSON text from outside, value by value, within limits. No tree is ever built.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace shoal {

inline constexpr int kMaxJsonDepth = 64;
// Values. Evaluations send 64 prompts of 4096 ids and more in one body; without a tree, a value
// costs time only.
inline constexpr int64_t kMaxJsonNodes = 1'000'000;

/// One value; an array or object is its beginning, followed by what is in it and by a kEnd.
struct JsonEvent {
  enum class Type { kNull, kBool, kInteger, kFloat, kString, kArray, kObject, kEnd };

  Type type = Type::kNull;
  int depth = 0;                  // containers around the value: 0 is the document itself
  std::string_view key = {};      // the value's own, if it is a member of an object; empty at kEnd
  bool boolean = false;           // kBool; kEnd: nothing was in it
  int64_t integer = 0;            // kInteger: also a number such as 3.0, if its size allows
  double number = 0;              // kInteger, kFloat
  std::string* string = nullptr;  // kString: valid UTF-8, may be moved from

  bool is_number() const { return type == Type::kInteger || type == Type::kFloat; }
};

/// Returns "" to go on, or what the value should have been: "a number", "an array of strings".
using JsonHandler = std::function<std::string(const JsonEvent&)>;

/// Passes the values of `text` to `handler`, in order. INVALID_ARGUMENT: `text` is not JSON or over
/// a limit (with the byte), or the handler refused a value (with its field, "messages[2].content").
absl::Status ReadJson(std::string_view text, const JsonHandler& handler);

}  // namespace shoal
