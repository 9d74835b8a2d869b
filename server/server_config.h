// ServerConfig: everything that `shoal serve` can be told.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/http/http_server.h"

namespace shoal {

struct ServerConfig {
  HttpServerConfig http;
  EngineConfig engine;                          // without model_directory: the default model
  std::vector<std::string> served_model_names;  // empty: after the model directory
  std::optional<uint64_t> seed;                 // of requests that bring none; none: random ones
  std::string fair_share = "key";               // who gets equal shares: "key", "user" or "off"
  int request_timeout_ms = 0;                   // longest that a request may take; 0: any time
  int drain_timeout_seconds = 45;
};

/// What FormatServerConfig() shows instead of a key.
inline constexpr char kMaskedKey[] = "***";

/// The configuration in force, as JSON with the flags' names; keys are masked.
std::string FormatServerConfig(const ServerConfig& config);

}  // namespace shoal
