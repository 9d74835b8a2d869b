// JsonNode: a value of a JSON file together with its path, which every error names.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace shoal {

/// Depth is limited and every exception of the parser becomes an INVALID_ARGUMENT naming `file`.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view file);

/// What is not there reads as null. All errors are INVALID_ARGUMENT. Thread: any.
class JsonNode {
 public:
  /// `value` outlives the node.
  JsonNode(const nlohmann::json* value, std::string path) : value_(value), path_(std::move(path)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }

  JsonNode operator[](std::string_view field) const;
  bool IsNull() const { return value_->is_null(); }

  absl::StatusOr<std::string> String() const;
  /// `if_null` for null.
  absl::StatusOr<bool> Bool(bool if_null) const;
  /// A token id.
  absl::StatusOr<int32_t> Id() const;
  /// The elements of an array; none for null.
  absl::StatusOr<std::vector<JsonNode>> Elements() const;

  /// "PATH is VALUE; supported: `supported`".
  absl::Status Unsupported(std::string_view supported) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
};

/// Ids are below this.
inline constexpr int32_t kMaxVocabSize = 1 << 20;

}  // namespace shoal
