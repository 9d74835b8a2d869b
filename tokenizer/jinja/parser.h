// Parses templates: statements with their bodies.
#pragma once

#include <memory>
#include <string_view>

#include "kernels/status.h"
#include "tokenizer/jinja/ast.h"

namespace shoal::jinja {

/// INVALID_ARGUMENT with line and what was expected; a construct of Jinja that is not supported is
/// named.
absl::StatusOr<std::unique_ptr<const Ast>> ParseTemplate(std::string_view source);

}  // namespace shoal::jinja
