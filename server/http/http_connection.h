// HTTP connections: read a request, admit it, run its handler, answer, and again.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "server/http/http_exchange.h"
#include "server/http/http_router.h"
#include "server/http/http_server.h"

namespace shoal {

/// Counts what is under way, so that others can wait for the end of it. Thread: any.
class InFlightCounter {
 public:
  /// One thing under way, for as long as this lives.
  class Scope {
   public:
    explicit Scope(InFlightCounter& counter) : counter_(counter) { counter_.Add(1); }
    ~Scope() { counter_.Add(-1); }
    Scope(const Scope&) = delete;

   private:
    InFlightCounter& counter_;
  };

  int count() const;
  /// False: still some at `deadline`.
  bool WaitUntilNone(std::chrono::steady_clock::time_point deadline);

 private:
  void Add(int change);

  mutable std::mutex mutex_;
  std::condition_variable none_;
  int count_ = 0;
};

/// What all connections of one server share. Thread: any.
class HttpServerState {
 public:
  HttpServerState(const HttpServerConfig& config, HttpObserver observer)
      : config(config), observer(std::move(observer)) {}

  std::shared_ptr<const HttpRouter> router() const;
  void SetRouter(std::shared_ptr<const HttpRouter> router);

  const HttpServerConfig config;
  const HttpObserver observer;
  std::atomic<bool> draining{false};
  InFlightCounter connections;
  InFlightCounter requests;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const HttpRouter> router_;
};

/// Serves one connection to its end. `state` outlives it.
boost::asio::awaitable<void> ServeConnection(boost::asio::ip::tcp::socket socket,
                                             HttpServerState& state);

/// Tells a client that there are too many connections already.
boost::asio::awaitable<void> RefuseConnection(boost::asio::ip::tcp::socket socket,
                                              HttpServerState& state);

}  // namespace shoal
