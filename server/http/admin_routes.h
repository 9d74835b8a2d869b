// Routes for operators: probes, metrics, version, prefix cache.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/admin/metrics.h"
#include "server/admin/readiness.h"
#include "server/http/http_exchange.h"

namespace shoal {

/// GET /livez, /startupz, /readyz, /health (public), /metrics, /version. The arguments outlive the
/// handlers.
std::vector<HttpRoute> AdminRoutes(const Readiness* readiness, const Metrics* metrics,
                                   const std::string& version);

/// POST /reset_prefix_cache. `engine` outlives the handler.
std::vector<HttpRoute> EngineRoutes(Engine* engine);

/// Answers everything else with 503 and the phase of start-up, until there is an engine to ask.
std::vector<HttpRoute> LoadingRoutes(const Readiness* readiness);

}  // namespace shoal
