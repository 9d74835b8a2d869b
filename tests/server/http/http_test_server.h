// A server whose routes do one thing each, for tests of the transport.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/asio/awaitable.hpp>
#include <cstdlib>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "server/http/http_server.h"
#include "tests/server/http/raw_client.h"

namespace shoal {

inline constexpr std::string_view kHost = "Host: localhost\r\n";

inline std::string Get(std::string_view path, std::string_view headers = "") {
  return fmt::format("GET {} HTTP/1.1\r\n{}{}\r\n", path, kHost, headers);
}

inline std::string Post(std::string_view path, std::string_view body,
                        std::string_view headers = "") {
  return fmt::format("POST {} HTTP/1.1\r\n{}{}Content-Length: {}\r\n\r\n{}", path, kHost, headers,
                     body.size(), body);
}

/// A server with routes that do one thing each, and what the handlers and the observer saw.
class HttpTestServer : public testing::Test {
 protected:
  void StartServer(HttpServerConfig config = {}) {
    config.port = 0;
    auto server = HttpServer::Start(
        config, Routes(),
        [this](const HttpRequest& request, std::string_view route, int status, double,
               std::string_view error) {
          std::lock_guard lock(mutex_);
          if (!error.empty()) errors_.emplace_back(error);
          observed_.push_back(fmt::format("{} {} {}", request.method, route, status));
        });
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
  }

  void TearDown() override {
    if (server_) server_->Stop();
  }

  std::vector<HttpRoute> Routes() {
    std::vector<HttpRoute> routes;
    routes.push_back(
        {"POST", "/echo", false, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
           HttpResponse response;
           response.content_type = "text/plain";
           response.body = exchange.request().body;
           co_await exchange.Respond(std::move(response));
         }});
    routes.push_back(
        {"GET", "/where/*", false, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
           HttpResponse response;
           response.body = exchange.request().path + "|" + exchange.request().query;
           co_await exchange.Respond(std::move(response));
         }});
    routes.push_back(
        {"POST", "/who", false, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
           const HttpRequest& request = exchange.request();
           EXPECT_LE(request.arrival, std::chrono::steady_clock::now());
           EXPECT_GT(request.arrival, std::chrono::steady_clock::time_point());
           co_await exchange.Respond(
               {.body = fmt::format("{}|{}", request.api_key, request.timeout_ms.value_or(""))});
         }});
    routes.back().has_body = false;
    routes.push_back(
        {"GET", "/probe", true, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
           co_await exchange.Respond({.status = 200, .body = "alive"});
         }});
    routes.push_back({"GET", "/throw", false, [](HttpExchange&) -> boost::asio::awaitable<void> {
                        throw std::runtime_error("secret");
                        co_return;
                      }});
    routes.push_back({"GET", "/silent", false,
                      [](HttpExchange&) -> boost::asio::awaitable<void> { co_return; }});
    routes.push_back(
        {"GET", "/stream", false, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
           co_await exchange.BeginStream({.content_type = "text/event-stream"});
           for (int i = 0; i < 3; ++i) co_await exchange.Write(fmt::format("{};", i));
           co_await exchange.EndStream();
         }});
    routes.push_back(
        {"GET", "/cut", false, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
           co_await exchange.BeginStream({});
           co_await exchange.Write("half");
         }});
    routes.push_back(
        {"GET", "/flood", false, [this](HttpExchange& exchange) { return Flood(exchange); }});
    routes.push_back(
        {"GET", "/wait", false, [this](HttpExchange& exchange) { return WaitOnce(exchange); }});
    return routes;
  }

  /// Streams without end until the client is gone.
  boost::asio::awaitable<void> Flood(HttpExchange& exchange) {
    co_await exchange.BeginStream({});
    const std::string block(1 << 20, 'x');
    while (co_await exchange.Write(block)) {
    }
    flood_ended_.set_value();
  }

  /// Gives its wake function to the test, and says how its sleep of ?MILLISECONDS ended.
  boost::asio::awaitable<void> WaitOnce(HttpExchange& exchange) {
    wake_.set_value(exchange.wake());
    const int timeout = std::atoi(exchange.request().query.c_str());
    const auto woken = co_await exchange.Wait(std::chrono::milliseconds(timeout));
    woken_.set_value(woken);
    co_await exchange.Respond(
        {.body = woken == HttpExchange::Woken::kWake ? "woken" : "not woken"});
  }

  std::vector<std::string> observed() {
    std::lock_guard lock(mutex_);
    return observed_;
  }

  std::vector<std::string> errors() {
    std::lock_guard lock(mutex_);
    return errors_;
  }

  std::unique_ptr<HttpServer> server_;
  std::promise<std::function<void()>> wake_;
  std::promise<HttpExchange::Woken> woken_;
  std::promise<void> flood_ended_;

 private:
  std::mutex mutex_;
  std::vector<std::string> observed_;
  std::vector<std::string> errors_;
};

inline void ExpectError(const RawResponse& response, int status) {
  EXPECT_EQ(response.status, status) << response.head << response.body;
  EXPECT_TRUE(response.Has("X-Request-Id: ")) << response.head;
  const auto json = nlohmann::json::parse(response.body, nullptr, false);
  ASSERT_TRUE(json.is_object() && json.contains("error")) << response.body;
  EXPECT_FALSE(json["error"]["message"].get<std::string>().empty());
}

}  // namespace shoal
