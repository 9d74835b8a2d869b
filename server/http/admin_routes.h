// Routes for operators: probes, metrics, version.
#pragma once

#include <string>
#include <vector>

#include "server/admin/metrics.h"
#include "server/admin/readiness.h"
#include "server/http/http_exchange.h"

namespace shoal {

/// GET /livez, /startupz, /readyz, /health (public), /metrics, /version. The arguments outlive the
/// handlers.
std::vector<HttpRoute> AdminRoutes(const Readiness* readiness, const Metrics* metrics,
                                   const std::string& version);

/// Answers everything else with 503 and the phase of start-up, until there is an engine to ask.
std::vector<HttpRoute> LoadingRoutes(const Readiness* readiness);

}  // namespace shoal
