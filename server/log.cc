#include "server/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

namespace shoal {
namespace {

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> kLogger = [] {
    auto made = std::make_shared<spdlog::logger>("shoal",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",%v)",
                      spdlog::pattern_time_type::utc);
    return made;
  }();
  return *kLogger;
}

void Log(spdlog::level::level_enum level, std::string_view message, const LogFields& fields) {
  LogFields line = {{"message", message}};
  line.update(fields);
  // The pattern has the opening brace and the first fields.
  const std::string text = line.dump(-1, ' ', false, LogFields::error_handler_t::replace).substr(1);
  Logger().log(level, spdlog::string_view_t(text));
}

}  // namespace

void LogInfo(std::string_view message, const LogFields& fields) {
  Log(spdlog::level::info, message, fields);
}

void LogWarning(std::string_view message, const LogFields& fields) {
  Log(spdlog::level::warn, message, fields);
}

void LogError(std::string_view message, const LogFields& fields) {
  Log(spdlog::level::err, message, fields);
}

}  // namespace shoal
