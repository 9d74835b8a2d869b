#include "server/http/connection_exchange.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/status.hpp>
#include <ctime>
#include <optional>

#include "kernels/status.h"

namespace shoal {
namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

std::string_view Reason(int status) {
  const auto reason = boost::beast::http::obsolete_reason(
      boost::beast::http::int_to_status(static_cast<unsigned>(status)));
  return {reason.data(), reason.size()};
}

/// Responses without a body by definition.
bool HasNoBody(int status) { return status < 200 || status == 204 || status == 304; }

}  // namespace

/// The part of an exchange that other threads may touch, also when the exchange is gone.
struct ConnectionExchange::Waker {
  explicit Waker(const asio::any_io_executor& executor) : timer(std::in_place, executor) {}

  /// Ends the sleep, on the strand.
  static void Wake(const std::shared_ptr<Waker>& waker) {
    if (waker->woken.exchange(true)) return;  // the sleeper has not looked yet
    std::lock_guard lock(waker->mutex);
    if (!waker->timer) return;
    asio::post(waker->timer->get_executor(), [waker] {
      std::lock_guard lock(waker->mutex);
      if (waker->timer) waker->timer->cancel();
    });
  }

  std::atomic<bool> woken{false};
  std::mutex mutex;
  std::optional<asio::steady_timer> timer;  // none: the exchange, and maybe its executor, is gone
};

ConnectionExchange::ConnectionExchange(TimedSocket& socket, const HttpRequest& request,
                                       const Options& options, const std::atomic<bool>& draining)
    : socket_(socket),
      request_(request),
      options_(options),
      draining_(draining),
      is_head_(request.method == "HEAD"),
      waker_(std::make_shared<Waker>(socket.executor())) {}

ConnectionExchange::~ConnectionExchange() {
  std::lock_guard lock(waker_->mutex);
  waker_->timer.reset();
}

std::string ConnectionExchange::FormatHead(const HttpResponse& response, std::string_view framing) {
  if (draining_) DropKeepAlive();
  std::string head = fmt::format(
      "HTTP/1.1 {} {}\r\nServer: shoal\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n"
      "X-Request-Id: {}\r\n{}",
      response.status, Reason(response.status), fmt::gmtime(std::time(nullptr)),
      request_.request_id, framing);
  if (!HasNoBody(response.status))
    head += fmt::format("Content-Type: {}\r\n", response.content_type);
  for (const auto& [name, value] : response.headers) head += fmt::format("{}: {}\r\n", name, value);
  head += options_.keep_alive ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return head;
}

asio::awaitable<bool> ConnectionExchange::Send(std::string_view bytes) {
  if (!client_gone_ && !co_await socket_.Write(bytes, options_.write_timeout)) client_gone_ = true;
  co_return !client_gone_;
}

asio::awaitable<void> ConnectionExchange::Respond(HttpResponse response) {
  SHOAL_CHECK(phase_ == Phase::kIdle, "a request is answered once");
  std::string framing;
  if (!HasNoBody(response.status)) {
    framing = fmt::format("Content-Length: {}\r\n", response.body.size());
  }
  std::string bytes = FormatHead(response, framing);
  if (!is_head_ && !HasNoBody(response.status)) bytes += response.body;
  phase_ = Phase::kEnded;  // only now: if there is no response yet, another can be given
  status_ = response.status;
  co_await Send(bytes);
}

asio::awaitable<bool> ConnectionExchange::BeginStream(HttpResponse head) {
  SHOAL_CHECK(phase_ == Phase::kIdle, "a request is answered once");
  if (options_.is_http_1_0) options_.keep_alive = false;
  const std::string bytes =
      FormatHead(head, options_.is_http_1_0 ? "" : "Transfer-Encoding: chunked\r\n");
  phase_ = Phase::kStreaming;
  status_ = head.status;
  co_return co_await Send(bytes);
}

asio::awaitable<bool> ConnectionExchange::Write(std::string_view bytes) {
  SHOAL_CHECK(phase_ == Phase::kStreaming, "BeginStream() comes before Write()");
  if (bytes.empty() || is_head_) co_return !client_gone_;
  if (options_.is_http_1_0) co_return co_await Send(bytes);
  const std::string chunk = fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
  co_return co_await Send(chunk);
}

asio::awaitable<void> ConnectionExchange::EndStream() {
  SHOAL_CHECK(phase_ == Phase::kStreaming, "BeginStream() comes before EndStream()");
  phase_ = Phase::kEnded;
  if (!is_head_ && !options_.is_http_1_0) co_await Send("0\r\n\r\n");
}

std::function<void()> ConnectionExchange::wake() {
  return [waker = waker_] { Waker::Wake(waker); };
}

asio::awaitable<HttpExchange::Woken> ConnectionExchange::Wait(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (true) {
    if (client_gone_) co_return Woken::kClientGone;
    if (waker_->woken.exchange(false)) co_return Woken::kWake;
    if (Clock::now() >= deadline) co_return Woken::kTimeout;
    // A cancel that belongs to an earlier wake only makes us look once more.
    waker_->timer->expires_at(deadline);
    co_await waker_->timer->async_wait(kAwait);
  }
}

asio::awaitable<void> ConnectionExchange::WatchClient(std::string& inbox, size_t max_bytes) {
  if (!co_await socket_.WaitForClose(inbox, max_bytes)) co_return;
  client_gone_ = true;
  waker_->timer->cancel();
  asio::steady_timer never(socket_.executor(), Clock::time_point::max());
  co_await never.async_wait(kAwait);
}

}  // namespace shoal
