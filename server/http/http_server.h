// HttpServer: HTTP/1.1 transport: connections, limits, time-outs, keys, routes.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "server/http/http_exchange.h"

namespace shoal {

struct HttpServerConfig {
  std::string host = "127.0.0.1";
  int port = 8000;                     // 0: any free one
  int num_threads = 2;                 // I/O threads
  std::vector<std::string> api_keys;   // empty: no key needed
  int64_t max_body_bytes = 4 << 20;
  int64_t max_header_bytes = 16 << 10;
  int max_connections = 4096;
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::chrono::milliseconds idle_timeout{75'000};   // between requests of one connection
  std::chrono::milliseconds write_timeout{30'000};  // without progress
};

/// Called after each request, for metrics and the log: route path, method, status, seconds.
using HttpObserver =
    std::function<void(const HttpRequest& request, std::string_view route, int status, double seconds)>;

/// Listens from Start() to Stop(). Thread: any.
class HttpServer {
 public:
  /// UNAVAILABLE with address and reason if the port cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerConfig& config,
                                                           std::vector<HttpRoute> routes,
                                                           HttpObserver observer);
  virtual ~HttpServer() = default;

  virtual int port() const = 0;
  /// Answers new requests with 503 and closes connections as their responses end.
  virtual void BeginDrain() = 0;
  /// Closes everything and ends the threads.
  virtual void Stop() = 0;
};

}  // namespace shoal
