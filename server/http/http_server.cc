#include "server/http/http_server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <thread>

#include "server/http/http_connection.h"

namespace shoal {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr int kMaxRefusals = 64;  // connections above the limit that still get an answer

class AsioHttpServer final : public HttpServer {
 public:
  AsioHttpServer(const HttpServerConfig& config, HttpObserver observer)
      : state_(config, std::move(observer)), io_(std::make_unique<asio::io_context>()) {}
  ~AsioHttpServer() override { Stop(); }

  /// Binds the port; names what failed.
  error_code Listen() {
    error_code error;
    tcp::resolver resolver(*io_);
    const auto endpoints = resolver.resolve(state_.config.host, std::to_string(state_.config.port),
                                            tcp::resolver::passive, error);
    if (error) return error;
    const tcp::endpoint endpoint = endpoints.begin()->endpoint();
    auto acceptor = std::make_unique<tcp::acceptor>(*io_);
    if (acceptor->open(endpoint.protocol(), error)) return error;
    if (acceptor->set_option(tcp::acceptor::reuse_address(true), error)) return error;
    if (acceptor->bind(endpoint, error)) return error;
    if (acceptor->listen(asio::socket_base::max_listen_connections, error)) return error;
    port_ = acceptor->local_endpoint().port();
    asio::co_spawn(*io_, Accept(std::move(*acceptor)), asio::detached);
    return error;
  }

  void Run() {
    for (int i = 0; i < state_.config.num_threads; ++i) {
      threads_.emplace_back([this] { io_->run(); });
    }
  }

  int port() const override { return port_; }

  void SetRoutes(std::vector<HttpRoute> routes) override {
    state_.SetRouter(std::make_shared<const HttpRouter>(std::move(routes)));
  }

  void BeginDrain() override { state_.draining = true; }

  bool WaitUntilIdle(std::chrono::steady_clock::time_point deadline) override {
    return state_.requests.WaitUntilNone(deadline);
  }

  void Stop() override {
    if (io_ == nullptr) return;
    io_->stop();
    for (std::thread& thread : threads_) thread.join();
    io_.reset();  // destroys the coroutines
  }

 private:
  asio::awaitable<void> Accept(tcp::acceptor acceptor) {
    while (true) {
      try {
        co_await AcceptOne(acceptor);
      } catch (...) {  // out of memory: costs this connection, not those to come
      }
    }
  }

  asio::awaitable<void> AcceptOne(tcp::acceptor& acceptor) {
    auto [error, socket] = co_await acceptor.async_accept(asio::make_strand(*io_), kAwait);
    if (error) {  // out of file descriptors, mostly: others will be closed
      asio::steady_timer pause(*io_, std::chrono::milliseconds(50));
      co_await pause.async_wait(kAwait);
      co_return;
    }
    const int above_limit = state_.connections.count() - state_.config.max_connections;
    if (above_limit >= kMaxRefusals) co_return;  // closes it
    const auto strand = socket.get_executor();
    tcp::socket client(std::move(socket));
    asio::co_spawn(strand,
                   above_limit >= 0 ? RefuseConnection(std::move(client), state_)
                                    : ServeConnection(std::move(client), state_),
                   asio::detached);
  }

  HttpServerState state_;
  std::unique_ptr<asio::io_context> io_;
  std::vector<std::thread> threads_;
  int port_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerConfig& config,
                                                              std::vector<HttpRoute> routes,
                                                              HttpObserver observer) {
  auto server = std::make_unique<AsioHttpServer>(config, std::move(observer));
  server->SetRoutes(std::move(routes));
  if (const error_code error = server->Listen()) {
    return absl::UnavailableError(
        fmt::format("cannot listen on {}:{}: {}", config.host, config.port, error.message()));
  }
  server->Run();
  return server;
}

}  // namespace shoal
