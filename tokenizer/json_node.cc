#include "tokenizer/json_node.h"

#include <algorithm>

namespace shoal {
namespace {

constexpr int kMaxDepth = 64;

// The nesting of `text`, if it is JSON; parsing deeper text would take memory out of proportion.
int Depth(std::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') {
      ++i;
    } else if (c == '"') {
      in_string = !in_string;
    } else if (!in_string && (c == '[' || c == '{')) {
      deepest = std::max(deepest, ++depth);
    } else if (!in_string && (c == ']' || c == '}')) {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view file) {
  if (Depth(text) > kMaxDepth) {
    return absl::InvalidArgumentError(
        fmt::format("{} nests deeper than {} levels", file, kMaxDepth));
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    return absl::InvalidArgumentError(
        fmt::format("{} is not valid JSON at byte {}", file, error.byte));
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(fmt::format("{} is not usable: {}", file, error.what()));
  }
}

JsonNode JsonNode::operator[](std::string_view field) const {
  static const nlohmann::json kNull;
  const nlohmann::json* child = &kNull;
  if (value_->is_object()) {
    const auto found = value_->find(field);
    if (found != value_->end()) child = &*found;
  }
  return {child, fmt::format("{}.{}", path_, field)};
}

absl::StatusOr<std::string> JsonNode::String() const {
  if (!value_->is_string()) return Unsupported("a string");
  return value_->get<std::string>();
}

absl::StatusOr<bool> JsonNode::Bool(bool if_null) const {
  if (IsNull()) return if_null;
  if (!value_->is_boolean()) return Unsupported("true, false");
  return value_->get<bool>();
}

absl::StatusOr<int32_t> JsonNode::Id() const {
  if (!value_->is_number_unsigned() || value_->get<uint64_t>() >= kMaxVocabSize) {
    return Unsupported(fmt::format("an integer from 0 to {}", kMaxVocabSize - 1));
  }
  return value_->get<int32_t>();
}

absl::StatusOr<std::vector<JsonNode>> JsonNode::Elements() const {
  std::vector<JsonNode> elements;
  if (IsNull()) return elements;
  if (!value_->is_array()) return Unsupported("an array");
  for (size_t i = 0; i < value_->size(); ++i) {
    elements.emplace_back(&(*value_)[i], fmt::format("{}[{}]", path_, i));
  }
  return elements;
}

absl::Status JsonNode::Unsupported(std::string_view supported) const {
  constexpr size_t kShown = 80;
  std::string shown = value_->dump(-1, ' ', true);
  if (shown.size() > kShown) shown = shown.substr(0, kShown) + "...";
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; supported: {}", path_, shown, supported));
}

}  // namespace shoal
