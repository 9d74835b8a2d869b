#include "server/http/admin_routes.h"

#include <fmt/format.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "server/http/openai_routes.h"

namespace shoal {
namespace {

/// A route that answers at once, until the end of the process.
HttpRoute Simple(const std::string& path, bool is_public, std::function<HttpResponse()> respond) {
  return {"GET", path, is_public,
          [respond = std::move(respond)](HttpExchange& exchange) -> boost::asio::awaitable<void> {
            co_await exchange.Respond(respond());
          },
          /*in_drain=*/true};
}

/// Status, phase and percent; 200 if `good`, else 503.
HttpResponse ProbeResponse(const Readiness::Snapshot& now, bool good) {
  const nlohmann::ordered_json body = {
      {"status", now.status()}, {"phase", now.phase}, {"percent", now.percent}};
  return {.status = good ? 200 : 503, .body = body.dump() + "\n"};
}

}  // namespace

std::vector<HttpRoute> AdminRoutes(const Readiness* readiness, const Metrics* metrics,
                                   const std::string& version) {
  const auto ready = [readiness] {
    const Readiness::Snapshot now = readiness->snapshot();
    return ProbeResponse(now, now.ready());
  };
  const auto started = [readiness] {
    const Readiness::Snapshot now = readiness->snapshot();
    return ProbeResponse(now, now.started());
  };
  std::vector<HttpRoute> routes;
  routes.push_back(
      Simple("/livez", true, [] { return HttpResponse{.body = "{\"status\":\"live\"}\n"}; }));
  routes.push_back(Simple("/startupz", true, started));
  routes.push_back(Simple("/readyz", true, ready));
  routes.push_back(Simple("/health", true, ready));
  routes.push_back(Simple("/metrics", false, [metrics] {
    return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                        .body = metrics->Text()};
  }));
  routes.push_back(Simple("/version", false, [version] {
    return HttpResponse{.body = nlohmann::json{{"version", version}}.dump() + "\n"};
  }));
  return routes;
}

std::vector<HttpRoute> EngineRoutes(Engine* engine) {
  HttpRoute reset = {"POST", "/reset_prefix_cache", /*is_public=*/false,
                     [engine](HttpExchange& exchange) -> boost::asio::awaitable<void> {
                       engine->ResetPrefixCache();
                       co_await exchange.Respond({.body = "{\"status\":\"ok\"}\n"});
                     }};
  reset.has_body = false;
  return {std::move(reset)};
}

std::vector<HttpRoute> LoadingRoutes(const Readiness* readiness) {
  const auto refuse = [readiness](HttpExchange& exchange) -> boost::asio::awaitable<void> {
    const Readiness::Snapshot now = readiness->snapshot();
    const std::string message =
        fmt::format("the model is not ready: {}, {} %", now.phase, now.percent);
    co_await exchange.Respond({.status = 503,
                               .body = OpenAiErrorBody(503, message, ""),
                               .headers = RetryHeaders(std::chrono::seconds(2))});
  };
  return {{"GET", "/*", false, refuse}, {"POST", "/*", false, refuse}};
}

}  // namespace shoal
