// Values as text: Python's str() and repr(), and JSON.
#pragma once

#include <optional>
#include <string>

#include "kernels/status.h"
#include "tokenizer/jinja/value.h"

namespace shoal::jinja {

/// str(value): what {{ value }} prints. Undefined is empty.
absl::StatusOr<Text> ToText(Heap& heap, const Value& value);

struct JsonFormat {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<Text> indent;  // of one level; none: a single line
  Text item_separator{", "};
  Text key_separator{": "};
};

/// json.dumps(value) of Python. INVALID_ARGUMENT: not made of JSON's types.
absl::StatusOr<Text> ToJson(Heap& heap, const Value& value, const JsonFormat& format);

}  // namespace shoal::jinja
