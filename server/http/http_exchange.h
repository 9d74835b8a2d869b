// HttpExchange: one HTTP request and the way to answer it, as route handlers see it.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shoal {

struct HttpRequest {
  std::string method;  // "GET", "POST", ...
  std::string path;    // decoded, without query
  std::string query;   // behind '?', as sent
  std::string body;
  std::string request_id;                 // X-Request-Id, or made up
  std::optional<std::string> timeout_ms;  // X-Request-Timeout-Ms as sent, several joined by ", "
  int api_key = 0;  // number of the key it came with; 0 also if it needed none
  std::chrono::steady_clock::time_point arrival = {};  // of the first byte
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};
};

/// Handlers either Respond() once, or BeginStream(), Write() any number of times and EndStream().
/// Thread: the connection's strand.
class HttpExchange {
 public:
  enum class Woken { kWake, kTimeout, kClientGone };

  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;

  /// Sends the whole response.
  virtual boost::asio::awaitable<void> Respond(HttpResponse response) = 0;

  /// Sends the head of a chunked response whose body follows. False: the client is gone.
  virtual boost::asio::awaitable<bool> BeginStream(HttpResponse head) = 0;
  virtual boost::asio::awaitable<bool> Write(std::string_view bytes) = 0;
  virtual boost::asio::awaitable<void> EndStream() = 0;

  /// A function for other threads that ends the present or next Wait(). May outlive the exchange.
  virtual std::function<void()> wake() = 0;
  /// Sleeps until woken, until the client closes the connection, or for `timeout`.
  virtual boost::asio::awaitable<Woken> Wait(std::chrono::milliseconds timeout) = 0;

  /// Says why the server failed to answer as asked: for the log, clients are not told.
  virtual void NoteError(std::string_view error) = 0;
};

using HttpHandler = std::function<boost::asio::awaitable<void>(HttpExchange&)>;

/// One entry of the route table. A path ending in "/*" matches everything below.
struct HttpRoute {
  std::string method;
  std::string path;
  bool is_public = false;  // answered without an API key: probes only
  HttpHandler handler;
  bool in_drain = false;  // answered while the server drains; public ones always are
  bool has_body = true;   // POST only: a request that does not say how long it is is refused
};

}  // namespace shoal
