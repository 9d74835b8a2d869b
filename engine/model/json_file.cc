#include "engine/model/json_file.h"

#include <filesystem>
#include <fstream>

namespace shoal {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(fmt::format("{}: no such file", path));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(fmt::format("{}: not a regular file", path));
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t bytes = file ? static_cast<int64_t>(file.tellg()) : -1;
  if (bytes > max_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the file has {} bytes, expected at most {}", path, bytes, max_bytes));
  }
  std::string text(bytes > 0 ? static_cast<size_t>(bytes) : 0, '\0');
  if (bytes < 0 || !file.seekg(0) || !file.read(text.data(), bytes)) {
    return absl::InvalidArgumentError(fmt::format("{}: the file cannot be read", path));
  }
  return text;
}

absl::StatusOr<json> ParseJsonObject(std::string_view text) {
  bool too_deep = false;
  std::string last_key;
  const auto observe = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::key) last_key = Shown(value);
    if (depth > kMaxDepth) too_deep = true;
    return !too_deep;
  };
  try {
    json object = json::parse(text.begin(), text.end(), observe);
    if (too_deep) {
      return absl::InvalidArgumentError(
          fmt::format("the JSON is nested more than {} deep", kMaxDepth));
    }
    if (!object.is_object()) {
      return absl::InvalidArgumentError(
          fmt::format("the JSON is {}, expected an object", Shown(object)));
    }
    return object;
  } catch (const json::parse_error& error) {
    return absl::InvalidArgumentError(fmt::format("malformed JSON at byte {}", error.byte));
  } catch (const json::exception&) {
    return absl::InvalidArgumentError(
        fmt::format("the JSON holds a number out of range near the key {}", last_key));
  }
}

std::string Shown(const json& value) {
  constexpr size_t kMaxShown = 80;
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > kMaxShown) text.replace(kMaxShown, std::string::npos, "...");
  return text;
}

absl::Status AtPath(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), fmt::format("{}: {}", path, std::string(status.message())));
}

}  // namespace shoal
