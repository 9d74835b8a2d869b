// ConnectionExchange: an HttpExchange on a TCP connection; frames the response.
#pragma once

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <mutex>
#include <string>

#include "server/http/http_exchange.h"
#include "server/http/timed_socket.h"

namespace shoal {

/// Thread: the connection's strand; what wake() returns: any.
class ConnectionExchange final : public HttpExchange {
 public:
  struct Options {
    bool keep_alive = true;    // the connection can go on after the response
    bool is_http_1_0 = false;  // knows no chunks: a stream ends with the connection
    std::chrono::milliseconds write_timeout{30'000};
  };

  /// The references outlive the exchange. A response begun while `draining` ends the connection.
  ConnectionExchange(TimedSocket& socket, const HttpRequest& request, const Options& options,
                     const std::atomic<bool>& draining);
  ~ConnectionExchange() override;

  const HttpRequest& request() const override { return request_; }
  boost::asio::awaitable<void> Respond(HttpResponse response) override;
  boost::asio::awaitable<bool> BeginStream(HttpResponse head) override;
  boost::asio::awaitable<bool> Write(std::string_view bytes) override;
  boost::asio::awaitable<void> EndStream() override;
  std::function<void()> wake() override;
  boost::asio::awaitable<Woken> Wait(std::chrono::milliseconds timeout) override;
  void NoteError(std::string_view error) override { error_ = error; }

  /// Reads ahead into `inbox` until cancelled, to see the client go.
  boost::asio::awaitable<void> WatchClient(std::string& inbox, size_t max_bytes);
  /// The connection will be closed after this response.
  void DropKeepAlive() { options_.keep_alive = false; }

  /// Status sent; 499 if the client left before.
  int status() const { return status_; }
  const std::string& error() const { return error_; }
  bool begun() const { return phase_ != Phase::kIdle; }
  /// As the head of the response said, unless something failed since.
  bool keep_alive() const {
    return phase_ == Phase::kEnded && !client_gone_ && options_.keep_alive;
  }

 private:
  enum class Phase { kIdle, kStreaming, kEnded };
  struct Waker;

  std::string FormatHead(const HttpResponse& response, std::string_view framing);
  boost::asio::awaitable<bool> Send(std::string_view bytes);

  TimedSocket& socket_;
  const HttpRequest& request_;
  Options options_;
  const std::atomic<bool>& draining_;
  const bool is_head_;
  Phase phase_ = Phase::kIdle;
  bool client_gone_ = false;
  int status_ = 499;
  std::string error_;
  std::shared_ptr<Waker> waker_;
};

}  // namespace shoal
