// shoal serve: the server process from its first log line to its last.
#pragma once

#include "server/server_config.h"

namespace shoal {

/// Listens, loads the model, serves until SIGTERM or SIGINT, drains. A second signal ends the
/// process at once. Errors of the start-up are returned.
absl::Status RunServe(const ServerConfig& config);

}  // namespace shoal
