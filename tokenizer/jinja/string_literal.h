// Escapes of string literals, as in Python.
#pragma once

#include <string>
#include <string_view>

#include "kernels/status.h"

namespace shoal::jinja {

/// What stands between the quotes, with its escapes resolved. INVALID_ARGUMENT: a broken escape.
absl::StatusOr<std::string> ResolveEscapes(std::string_view literal);

}  // namespace shoal::jinja
