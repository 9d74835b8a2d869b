#include "server/config_file.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

// These say where to read the configuration or what to do with it; they are not part of it.
bool IsConfiguration(const std::string& name) {
  return name != "help" && name != "config" && name != "print-config";
}

absl::Status SetOption(CLI::Option& option, const Json& value) {
  // As --print-config prints them, null and [] are options that nobody has set.
  const Json values = value.is_array()  ? value
                      : value.is_null() ? Json::array()
                                        : Json::array({value});
  if (values.empty()) return absl::OkStatus();
  for (const Json& item : values) {
    if (item.is_string()) {
      option.add_result(item.get<std::string>());
    } else if (item.is_number() || item.is_boolean()) {
      option.add_result(item.dump());
    } else {
      return absl::InvalidArgumentError(
          fmt::format("is {}, expected a string, number, boolean or array of them", item.dump()));
    }
  }
  try {
    option.run_callback();
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(error.what());
  }
  return absl::OkStatus();
}

}  // namespace

void ReadOptionsFromEnvironment(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty() || !IsConfiguration(option->get_lnames().front())) continue;
    std::string name = "SHOAL_" + option->get_lnames().front();
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
      return static_cast<char>(c == '-' ? '_' : std::toupper(c));
    });
    option->envname(name);
  }
}

absl::Status ApplyConfigFile(CLI::App& command, const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::InvalidArgumentError(fmt::format("--config: {} cannot be read", path));
  const Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(fmt::format("--config: {} is not a JSON object", path));
  }
  for (const auto& [key, value] : json.items()) {
    CLI::Option* const option = command.get_option_no_throw("--" + key);
    // A negated name, as of --no-enable-prefix-caching, would take its value for the option's own.
    if (option == nullptr || option->get_lnames().front() != key || !IsConfiguration(key)) {
      return absl::InvalidArgumentError(fmt::format("{}: there is no option \"{}\"", path, key));
    }
    if (option->count() > 0) continue;
    if (const absl::Status status = SetOption(*option, value); !status.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: \"{}\": {}", path, key, std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

}  // namespace shoal
