// JSON files of a checkpoint directory, read with limits: they come from outside.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace shoal {

/// The whole file. NOT_FOUND, or INVALID_ARGUMENT if it is not a regular file of at most
/// `max_bytes`; both with the path.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes);

/// Parses a JSON object, nested at most 64 deep. INVALID_ARGUMENT with the byte position of the
/// fault.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

/// A value as error messages show it: JSON in ASCII, cut at 80 characters.
std::string Shown(const nlohmann::json& value);

/// `status` with "path: " before its message.
absl::Status AtPath(const std::string& path, const absl::Status& status);

}  // namespace shoal
