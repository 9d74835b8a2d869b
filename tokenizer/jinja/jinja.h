// The subset of the Jinja template language that chat templates use.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "kernels/status.h"

namespace shoal::jinja {

/// A piece of rendered text and where it came from.
struct Segment {
  std::string text;
  bool from_input = false;  // it came, even in part, from an untrusted variable
};

/// A parsed template. Immutable. Thread: any.
class Template {
 public:
  struct Limits {
    int64_t max_steps = 1'000'000;            // evaluated nodes of one rendering
    int64_t max_output_bytes = 16 * 1024 * 1024;
  };

  /// INVALID_ARGUMENT with line and what was expected.
  static absl::StatusOr<std::unique_ptr<Template>> Parse(std::string_view source);
  virtual ~Template() = default;

  /// Renders with the variables of the objects `trusted` and `input`. Every character knows whether it
  /// stems from `input`, through all string operations, so adjacent segments differ in from_input.
  /// INVALID_ARGUMENT: the template refused (raise_exception) or used something undefined;
  /// RESOURCE_EXHAUSTED: over a limit.
  virtual absl::StatusOr<std::vector<Segment>> Render(const nlohmann::ordered_json& trusted,
                                                      const nlohmann::ordered_json& input,
                                                      const Limits& limits) const = 0;
};

}  // namespace shoal::jinja
