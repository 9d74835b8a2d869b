#include "server/http/http_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <exception>
#include <optional>

#include "server/http/connection_exchange.h"
#include "server/http/http_request_parser.h"
#include "server/http/openai_routes.h"
#include "server/http/timed_socket.h"

namespace shoal {
namespace {

namespace asio = boost::asio;
using asio::experimental::awaitable_operators::operator||;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kCloseTimeout{2'000};
constexpr std::chrono::milliseconds kRefuseTimeout{500};
constexpr size_t kReadAheadBytes = 64 << 10;  // of pipelined requests

/// Takes the same time for every `given` of the same length.
bool EqualInConstantTime(std::string_view key, std::string_view given) {
  unsigned difference = key.size() != given.size();
  for (size_t i = 0; i < key.size(); ++i) {
    difference |= static_cast<unsigned char>(key[i]) ^
                  static_cast<unsigned char>(i < given.size() ? given[i] : 0);
  }
  return difference == 0;
}

std::string_view BearerToken(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  const bool is_bearer =
      authorization.size() > kScheme.size() &&
      std::equal(kScheme.begin(), kScheme.end(), authorization.begin(), [](char expected, char c) {
        return expected == (c | ('A' <= c && c <= 'Z' ? 32 : 0));
      });
  return is_bearer ? authorization.substr(kScheme.size()) : std::string_view();
}

/// Number of the key that the request has; 0 if there are no keys. All are compared, found or not.
std::optional<int> FindKey(const std::vector<std::string>& keys, const HttpRequestParser& parser) {
  if (keys.empty()) return 0;
  const std::string_view bearer = BearerToken(parser.Header("authorization"));
  const std::string_view header = parser.Header("x-api-key");
  std::optional<int> found;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].empty()) continue;  // whoever sends no key would have it
    const bool is_bearer = EqualInConstantTime(keys[i], bearer);
    const bool is_header = EqualInConstantTime(keys[i], header);
    if (is_bearer || is_header) found = static_cast<int>(i);
  }
  return found;
}

std::string Describe(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& exception) {
    return exception.what();
  } catch (...) {
    return "an exception of an unknown type";
  }
}

HttpResponse ErrorResponse(int status, std::string_view message) {
  HttpResponse response;
  response.status = status;
  response.body = OpenAiErrorBody(status, message, "");
  return response;
}

/// One connection. Lives in the coroutine that serves it.
class HttpConnection {
 public:
  HttpConnection(asio::ip::tcp::socket socket, HttpServerState& state)
      : state_(state), config_(state.config), socket_(std::move(socket)) {}

  asio::awaitable<void> Serve() {
    auto first_byte_timeout = config_.header_timeout;
    while (co_await ServeRequest(first_byte_timeout)) first_byte_timeout = config_.idle_timeout;
    co_await socket_.Close(kCloseTimeout);
  }

 private:
  /// One request and its response. False: the connection ends here.
  asio::awaitable<bool> ServeRequest(std::chrono::milliseconds first_byte_timeout);
  /// Read until `parser` has head or body. An error to answer, or false: no client. The head begins
  /// until `first_byte_deadline`; empty lines before it are not its beginning.
  asio::awaitable<bool> ReadHead(HttpRequestParser& parser, Clock::time_point first_byte_deadline,
                                 std::optional<HttpParseError>& error);
  asio::awaitable<bool> ReadBody(HttpRequestParser& parser, std::optional<HttpParseError>& error);
  /// Finds the route and the key; or says why the request is refused, by its head alone.
  std::optional<HttpResponse> Admit(const HttpRequestParser& parser, HttpRequest& request,
                                    const HttpRouter& router, const HttpRoute*& route) const;
  /// Never throws: the watch of the client, which runs beside it, would then have no end.
  asio::awaitable<void> RunHandler(const HttpRoute& route, ConnectionExchange& exchange);
  /// Answers without a handler.
  asio::awaitable<bool> Refuse(HttpRequestParser& parser, HttpResponse response, bool keep_alive);
  void Observe(const ConnectionExchange& exchange, std::string_view route) const;

  HttpServerState& state_;
  const HttpServerConfig& config_;
  TimedSocket socket_;
  std::string inbox_;        // bytes received and not yet parsed
  Clock::time_point begin_;  // of the present request
};

asio::awaitable<bool> HttpConnection::ServeRequest(std::chrono::milliseconds first_byte_timeout) {
  begin_ = Clock::now();
  HttpRequestParser parser(config_.max_header_bytes, config_.max_body_bytes);
  std::optional<HttpParseError> error;
  if (!co_await ReadHead(parser, begin_ + first_byte_timeout, error)) co_return false;
  if (error) co_return co_await Refuse(parser, ErrorResponse(error->status, error->message), false);

  HttpRequest& request = parser.request();
  request.arrival = begin_;
  const std::shared_ptr<const HttpRouter> router = state_.router();
  const HttpRoute* route = nullptr;
  InFlightCounter::Scope in_flight(state_.requests);
  if (auto refusal = Admit(parser, request, *router, route)) {
    co_return co_await Refuse(parser, *std::move(refusal),
                              parser.keep_alive() && !parser.has_body());
  }
  if (parser.expects_continue() && parser.has_body() && inbox_.empty() &&
      !co_await socket_.Write("HTTP/1.1 100 Continue\r\n\r\n", config_.write_timeout)) {
    co_return false;
  }
  if (!co_await ReadBody(parser, error)) co_return false;
  if (error) co_return co_await Refuse(parser, ErrorResponse(error->status, error->message), false);

  ConnectionExchange exchange(socket_, request,
                              {.keep_alive = parser.keep_alive(),
                               .is_http_1_0 = parser.is_http_1_0(),
                               .write_timeout = config_.write_timeout},
                              state_.draining);
  co_await (RunHandler(*route, exchange) || exchange.WatchClient(inbox_, kReadAheadBytes));
  Observe(exchange, route->path);
  co_return exchange.keep_alive();
}

asio::awaitable<bool> HttpConnection::ReadHead(HttpRequestParser& parser,
                                               Clock::time_point first_byte_deadline,
                                               std::optional<HttpParseError>& error) {
  while (true) {
    error = parser.ParseHead(inbox_);
    if (error || parser.head_done()) co_return true;
    const bool has_begun = !inbox_.empty();
    const auto read = co_await socket_.Read(
        inbox_, has_begun ? begin_ + config_.header_timeout : first_byte_deadline);
    if (read == TimedSocket::ReadResult::kClosed) co_return false;
    if (read == TimedSocket::ReadResult::kTimeout) {
      if (!has_begun) co_return false;
      error = HttpParseError{408, "the request head did not arrive in time"};
      co_return true;
    }
    if (!has_begun) begin_ = Clock::now();
  }
}

asio::awaitable<bool> HttpConnection::ReadBody(HttpRequestParser& parser,
                                               std::optional<HttpParseError>& error) {
  const auto deadline = Clock::now() + config_.body_timeout;
  while (true) {
    error = parser.ParseBody(inbox_);
    if (error || parser.done()) co_return true;
    const auto read = co_await socket_.Read(inbox_, deadline);
    if (read == TimedSocket::ReadResult::kClosed) co_return false;
    if (read == TimedSocket::ReadResult::kTimeout) {
      error = HttpParseError{408, "the request body did not arrive in time"};
      co_return true;
    }
  }
}

std::optional<HttpResponse> HttpConnection::Admit(const HttpRequestParser& parser,
                                                  HttpRequest& request, const HttpRouter& router,
                                                  const HttpRoute*& route) const {
  HttpRouter::Match match = router.Find(request.method, request.path);
  route = match.route;
  const bool is_public = route != nullptr && route->is_public;
  const std::optional<int> key = FindKey(config_.api_keys, parser);
  request.api_key = key.value_or(0);
  if (!is_public && !key) {
    HttpResponse response = ErrorResponse(401, "a valid API key is required");
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return response;
  }
  const bool in_drain = is_public || (route != nullptr && route->in_drain);
  if (!in_drain && state_.draining) {
    HttpResponse response = ErrorResponse(503, "the server is shutting down");
    response.headers = RetryHeaders(std::chrono::seconds(5));
    return response;
  }
  if (route == nullptr && match.allowed_methods.empty()) {
    return ErrorResponse(404, fmt::format("there is no path {}", request.path));
  }
  if (route == nullptr) {
    HttpResponse response = ErrorResponse(405, fmt::format("{} takes {}, not {}", request.path,
                                                           match.allowed_methods, request.method));
    response.headers.emplace_back("Allow", std::move(match.allowed_methods));
    return response;
  }
  if (const auto error = parser.CheckLength(route->has_body)) {
    return ErrorResponse(error->status, error->message);
  }
  if (!parser.Header("expect").empty() && !parser.expects_continue()) {
    return ErrorResponse(417, "Expect can only be 100-continue");
  }
  return std::nullopt;
}

asio::awaitable<void> HttpConnection::RunHandler(const HttpRoute& route,
                                                 ConnectionExchange& exchange) {
  std::exception_ptr failure;
  try {
    co_await route.handler(exchange);
  } catch (...) {  // costs its own request only
    failure = std::current_exception();
  }
  if (!failure && exchange.begun()) co_return;  // an open stream is cut, which clients can tell
  try {
    exchange.NoteError(failure ? Describe(failure) : "the handler gave no response");
    if (!exchange.begun()) {
      HttpResponse response = ErrorResponse(500, "internal error");
      response.headers.emplace_back("x-should-retry", "false");
      co_await exchange.Respond(std::move(response));
      co_return;
    }
  } catch (...) {  // the end of the connection has to be answer enough
  }
  exchange.DropKeepAlive();
}

asio::awaitable<bool> HttpConnection::Refuse(HttpRequestParser& parser, HttpResponse response,
                                             bool keep_alive) {
  ConnectionExchange exchange(
      socket_, parser.request(),
      {.keep_alive = keep_alive, .is_http_1_0 = false, .write_timeout = config_.write_timeout},
      state_.draining);
  co_await exchange.Respond(std::move(response));
  Observe(exchange, "");
  co_return exchange.keep_alive();
}

void HttpConnection::Observe(const ConnectionExchange& exchange, std::string_view route) const {
  if (!state_.observer) return;
  const std::chrono::duration<double> elapsed = Clock::now() - begin_;
  state_.observer(exchange.request(), route, exchange.status(), elapsed.count(), exchange.error());
}

}  // namespace

int InFlightCounter::count() const {
  std::lock_guard lock(mutex_);
  return count_;
}

void InFlightCounter::Add(int change) {
  std::lock_guard lock(mutex_);
  count_ += change;
  if (count_ == 0) none_.notify_all();
}

bool InFlightCounter::WaitUntilNone(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return none_.wait_until(lock, deadline, [this] { return count_ == 0; });
}

std::shared_ptr<const HttpRouter> HttpServerState::router() const {
  std::lock_guard lock(mutex_);
  return router_;
}

void HttpServerState::SetRouter(std::shared_ptr<const HttpRouter> router) {
  std::lock_guard lock(mutex_);
  router_ = std::move(router);
}

asio::awaitable<void> ServeConnection(asio::ip::tcp::socket socket, HttpServerState& state) {
  InFlightCounter::Scope scope(state.connections);
  HttpConnection connection(std::move(socket), state);
  co_await connection.Serve();
}

asio::awaitable<void> RefuseConnection(asio::ip::tcp::socket socket, HttpServerState& state) {
  InFlightCounter::Scope scope(state.connections);
  TimedSocket timed(std::move(socket));
  const HttpRequest unread;
  ConnectionExchange exchange(timed, unread, {.keep_alive = false, .is_http_1_0 = false},
                              state.draining);
  HttpResponse response = ErrorResponse(503, "too many connections");
  response.headers = RetryHeaders(std::chrono::seconds(1));
  co_await exchange.Respond(std::move(response));
  co_await timed.Close(kRefuseTimeout);
}

}  // namespace shoal
