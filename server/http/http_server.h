// HttpServer: HTTP/1.1 transport: connections, limits, time-outs, keys, routes.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "server/http/http_exchange.h"

namespace shoal {

struct HttpServerConfig {
  std::string host = "127.0.0.1";
  int port = 8000;                         // 0: any free one
  int num_threads = 2;                     // I/O threads
  std::vector<std::string> api_keys = {};  // empty: no key needed
  int64_t max_body_bytes = 4 << 20;
  int64_t max_header_bytes = 16 << 10;
  int max_connections = 4096;
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::chrono::milliseconds idle_timeout{75'000};   // between requests of one connection
  std::chrono::milliseconds write_timeout{30'000};  // without progress
};

/// Called after each request, for metrics and the log: route path (empty: refused before a route),
/// status (499: the client left before a response), seconds, what the server failed at (empty:
/// nothing). Thread: any I/O thread.
using HttpObserver = std::function<void(const HttpRequest& request, std::string_view route,
                                        int status, double seconds, std::string_view error)>;

/// Listens from Start() to Stop(). Thread: any.
class HttpServer {
 public:
  /// UNAVAILABLE with address and reason if the port cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerConfig& config,
                                                           std::vector<HttpRoute> routes,
                                                           HttpObserver observer);
  /// Stops.
  virtual ~HttpServer() = default;

  virtual int port() const = 0;
  /// Replaces the route table for requests that begin from now on.
  virtual void SetRoutes(std::vector<HttpRoute> routes) = 0;
  /// Answers new requests with 503, but for routes that are public or `in_drain`, and closes
  /// connections as their responses end.
  virtual void BeginDrain() = 0;
  /// Waits until no request is under way. False: some were at `deadline`.
  virtual bool WaitUntilIdle(std::chrono::steady_clock::time_point deadline) = 0;
  /// Closes everything and ends the threads. Handlers that still run are destroyed where they wait.
  virtual void Stop() = 0;
};

}  // namespace shoal
