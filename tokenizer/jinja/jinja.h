// The subset of the Jinja template language that chat templates use.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "kernels/status.h"

namespace shoal::jinja {

struct Ast;

/// A piece of rendered text and where it came from.
struct Segment {
  std::string text;
  bool from_input = false;  // it came, even in part, from an untrusted variable
};

/// What one rendering may use.
struct Limits {
  int64_t max_steps = 1'000'000;                // evaluated nodes; long values count by their size
  int64_t max_output_bytes = 16 * 1024 * 1024;  // of the output and of every string on the way
};

/// A parsed template. Immutable. Thread: any.
class Template {
 public:
  using Limits = jinja::Limits;

  /// INVALID_ARGUMENT with line and what was expected.
  static absl::StatusOr<std::unique_ptr<Template>> Parse(std::string_view source);
  ~Template();

  /// Renders with the variables of the objects `trusted` and `input`; `trusted` wins where both
  /// name one. Every character knows whether it stems from `input`, through all string operations,
  /// so adjacent segments differ in from_input. INVALID_ARGUMENT: the template refused
  /// (raise_exception) or used something undefined; RESOURCE_EXHAUSTED: over a limit. Both name the
  /// line.
  absl::StatusOr<std::vector<Segment>> Render(const nlohmann::ordered_json& trusted,
                                              const nlohmann::ordered_json& input,
                                              const Limits& limits) const;

 private:
  explicit Template(std::unique_ptr<const Ast> ast);

  std::unique_ptr<const Ast> ast_;
};

}  // namespace shoal::jinja
