// The log: one JSON object per line on stderr. Never holds prompts, outputs or keys.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace shoal {

/// More than the message: name and value, in this order.
using LogFields = nlohmann::ordered_json;

// Thread: any.
void LogInfo(std::string_view message, const LogFields& fields = LogFields::object());
void LogWarning(std::string_view message, const LogFields& fields = LogFields::object());
void LogError(std::string_view message, const LogFields& fields = LogFields::object());

}  // namespace shoal
