#include "server/http/http_server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

#include "tests/server/http/raw_client.h"

namespace shoal {
namespace {

namespace asio = boost::asio;
using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;
using std::string_literals::operator""s;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::string_view kHost = "Host: localhost\r\n";

std::string Get(std::string_view path, std::string_view headers = "") {
  return fmt::format("GET {} HTTP/1.1\r\n{}{}\r\n", path, kHost, headers);
}

std::string Post(std::string_view path, std::string_view body, std::string_view headers = "") {
  return fmt::format("POST {} HTTP/1.1\r\n{}{}Content-Length: {}\r\n\r\n{}", path, kHost, headers,
                     body.size(), body);
}

/// A server with routes that do one thing each, and what the handlers and the observer saw.
class HttpServerTest : public testing::Test {
 protected:
  void StartServer(HttpServerConfig config = {}) {
    config.port = 0;
    auto server = HttpServer::Start(
        config, Routes(),
        [this](const HttpRequest& request, std::string_view route, int status, double) {
          std::lock_guard lock(mutex_);
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
    routes.push_back({"POST", "/echo", false, [](HttpExchange& exchange) -> asio::awaitable<void> {
                        HttpResponse response;
                        response.content_type = "text/plain";
                        response.body = exchange.request().body;
                        co_await exchange.Respond(std::move(response));
                      }});
    routes.push_back(
        {"GET", "/where/*", false, [](HttpExchange& exchange) -> asio::awaitable<void> {
           HttpResponse response;
           response.body = exchange.request().path + "|" + exchange.request().query;
           co_await exchange.Respond(std::move(response));
         }});
    routes.push_back({"GET", "/probe", true, [](HttpExchange& exchange) -> asio::awaitable<void> {
                        co_await exchange.Respond({.status = 200, .body = "alive"});
                      }});
    routes.push_back({"GET", "/throw", false, [](HttpExchange&) -> asio::awaitable<void> {
                        throw std::runtime_error("secret");
                        co_return;
                      }});
    routes.push_back(
        {"GET", "/silent", false, [](HttpExchange&) -> asio::awaitable<void> { co_return; }});
    routes.push_back({"GET", "/stream", false, [](HttpExchange& exchange) -> asio::awaitable<void> {
                        co_await exchange.BeginStream({.content_type = "text/event-stream"});
                        for (int i = 0; i < 3; ++i) co_await exchange.Write(fmt::format("{};", i));
                        co_await exchange.EndStream();
                      }});
    routes.push_back({"GET", "/cut", false, [](HttpExchange& exchange) -> asio::awaitable<void> {
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
  asio::awaitable<void> Flood(HttpExchange& exchange) {
    co_await exchange.BeginStream({});
    const std::string block(1 << 20, 'x');
    while (co_await exchange.Write(block)) {
    }
    flood_ended_.set_value();
  }

  /// Gives its wake function to the test, and says how its sleep of ?MILLISECONDS ended.
  asio::awaitable<void> WaitOnce(HttpExchange& exchange) {
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

  std::unique_ptr<HttpServer> server_;
  std::promise<std::function<void()>> wake_;
  std::promise<HttpExchange::Woken> woken_;
  std::promise<void> flood_ended_;

 private:
  std::mutex mutex_;
  std::vector<std::string> observed_;
};

void ExpectError(const RawResponse& response, int status) {
  EXPECT_EQ(response.status, status) << response.head << response.body;
  EXPECT_TRUE(response.Has("X-Request-Id: ")) << response.head;
  const auto json = nlohmann::json::parse(response.body, nullptr, false);
  ASSERT_TRUE(json.is_object() && json.contains("error")) << response.body;
  EXPECT_FALSE(json["error"]["message"].get<std::string>().empty());
}

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  StartServer();
  RawClient client(server_->port());
  for (int i = 0; i < 3; ++i) {
    const RawResponse response = client.Ask(Post("/echo", "hello"));
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "hello");
    EXPECT_TRUE(response.Has("Server: shoal\r\n"));
    EXPECT_TRUE(response.Has("Content-Type: text/plain\r\n"));
    EXPECT_TRUE(response.Has("Connection: keep-alive\r\n"));
  }
}

TEST_F(HttpServerTest, DecodesPathAndKeepsQuery) {
  StartServer();
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Get("/where/a%2Fb%20c?x=%20&y")).body, "/where/a/b c|x=%20&y");
  ExpectError(client.Ask(Get("/where/a%zz")), 400);
}

TEST_F(HttpServerTest, UnderstandsARequestSplitAtEveryByte) {
  StartServer();
  const std::string chunked = fmt::format(
      "POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n"
      "3;note=x\r\nabc\r\n4\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n",
      kHost);
  for (const std::string& request : {Post("/echo", "abcdefg"), chunked}) {
    RawClient client(server_->port());
    for (size_t i = 0; i <= request.size(); ++i) {
      client.Send(std::string_view(request).substr(0, i));
      std::this_thread::yield();
      client.Send(std::string_view(request).substr(i));
      EXPECT_EQ(client.Read().body, "abcdefg") << "split at " << i;
    }
    for (const char c : request) client.Send(std::string_view(&c, 1));
    EXPECT_EQ(client.Read().body, "abcdefg");
  }
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  StartServer();
  RawClient client(server_->port());
  std::string requests;
  for (int i = 0; i < 50; ++i) requests += Post("/echo", std::to_string(i)) + Get("/stream");
  client.Send(requests);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(client.Read().body, std::to_string(i));
    EXPECT_EQ(client.Read().body, "0;1;2;");
  }
}

TEST_F(HttpServerTest, StreamsInChunks) {
  StartServer();
  RawClient client(server_->port());
  const RawResponse response = client.Ask(Get("/stream"));
  EXPECT_EQ(response.body, "0;1;2;");
  EXPECT_TRUE(response.Has("Transfer-Encoding: chunked\r\n"));
  EXPECT_TRUE(response.Has("Content-Type: text/event-stream\r\n"));
}

TEST_F(HttpServerTest, StreamsToHttp10ByClosing) {
  StartServer();
  RawClient client(server_->port());
  client.Send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string bytes = client.ReadAll();
  EXPECT_THAT(bytes, HasSubstr("Connection: close\r\n"));
  EXPECT_THAT(bytes, testing::EndsWith("\r\n\r\n0;1;2;"));
}

TEST_F(HttpServerTest, HeadHasTheHeadersOfGetAndNoBody) {
  StartServer();
  RawClient client(server_->port());
  client.Send("HEAD /probe HTTP/1.1\r\nHost: x\r\n\r\nHEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n");
  const RawResponse response = client.Read(/*expect_body=*/false);
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.Has("Content-Length: 5\r\n"));
  EXPECT_EQ(client.Read(/*expect_body=*/false).status, 200);
  EXPECT_EQ(client.Ask(Get("/probe")).body, "alive");
}

TEST_F(HttpServerTest, RefusesUnknownPathAndMethod) {
  StartServer();
  RawClient client(server_->port());
  ExpectError(client.Ask(Get("/nothing")), 404);
  const RawResponse response = client.Ask(Get("/echo"));
  ExpectError(response, 405);
  EXPECT_TRUE(response.Has("Allow: POST\r\n"));
  EXPECT_EQ(client.Ask(Post("/echo", "same connection")).status, 200);
}

TEST_F(HttpServerTest, RefusesABodyOverTheLimit) {
  StartServer({.max_body_bytes = 1000});
  EXPECT_EQ(RawClient(server_->port()).Ask(Post("/echo", std::string(1000, 'x'))).status, 200);
  // The client sends all of it before it reads, so the refusal must survive unread bytes.
  ExpectError(RawClient(server_->port()).Ask(Post("/echo", std::string(1 << 20, 'x'))), 413);
  ExpectError(RawClient(server_->port())
                  .Ask(fmt::format("POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n"
                                   "3E8\r\n{}\r\n1\r\nx\r\n0\r\n\r\n",
                                   kHost, std::string(1000, 'x'))),
              413);
}

TEST_F(HttpServerTest, RefusesTooMuchHead) {
  StartServer();
  const auto ask = [&](const std::string& bytes) { return RawClient(server_->port()).Ask(bytes); };
  ExpectError(ask(Get("/probe", "A: " + std::string(17 << 10, 'x') + "\r\n")), 431);
  ExpectError(ask(Get("/" + std::string(9 << 10, 'x'))), 414);
  ExpectError(ask("GET /" + std::string(20 << 10, 'x')), 414);
  std::string fields;
  for (int i = 0; i < 70; ++i) fields += fmt::format("A{}: x\r\n", i);
  ExpectError(ask(Get("/probe", fields)), 431);
}

TEST_F(HttpServerTest, RefusesWhatSmugglersSend) {
  StartServer();
  const std::vector<std::string> bad = {
      "GET /probe HTTP/1.1\r\n\r\n",  // no Host
      "GET /probe HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
      "GET /probe HTTP/1.1\nHost: a\n\n",                      // bare LF
      "GET /probe HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n",     // bare CR
      "GET /probe HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",  // folded
      "GET /probe HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n"s,
      "GET /probe HTTP/1.1\r\nHost : a\r\n\r\n",
      "GET /probe HTTP/2.0\r\nHost: a\r\n\r\n",
      "GET  /probe HTTP/1.1\r\nHost: a\r\n\r\n",
      "GET /probe\r\nHost: a\r\n\r\n",
      "GET http://b/probe HTTP/1.1\r\nHost: a\r\n\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "nonsense\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      fmt::format("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;{}",
                  std::string(8 << 10, 'x')),
  };
  for (const std::string& request : bad) {
    RawClient client(server_->port());
    const RawResponse response = client.Ask(request);
    SCOPED_TRACE(request);
    ExpectError(response, 400);
    EXPECT_TRUE(response.Has("Connection: close\r\n"));
    EXPECT_THAT(client.ReadAll(), IsEmpty());
  }
  ExpectError(RawClient(server_->port()).Ask(Get("/probe", "Transfer-Encoding: gzip, chunked\r\n")),
              501);
  ExpectError(RawClient(server_->port()).Ask(fmt::format("POST /echo HTTP/1.1\r\n{}\r\n", kHost)),
              411);
}

TEST_F(HttpServerTest, SaysContinueWhenAsked) {
  StartServer();
  RawClient client(server_->port());
  client.Send(fmt::format(
      "POST /echo HTTP/1.1\r\n{}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n", kHost));
  ASSERT_TRUE(client.Await("HTTP/1.1 100 Continue\r\n\r\n"));
  EXPECT_EQ(client.Ask("ok").body, "ok");
  ExpectError(client.Ask(Post("/echo", "", "Expect: miracles\r\n")), 417);
}

TEST_F(HttpServerTest, AnswersSlowClientsWithATimeout) {
  StartServer({.header_timeout = 100ms, .body_timeout = 100ms, .idle_timeout = 100ms});
  ExpectError(RawClient(server_->port()).Ask("GET /pro"), 408);
  ExpectError(RawClient(server_->port())
                  .Ask(fmt::format("POST /echo HTTP/1.1\r\n{}Content-Length: 9\r\n\r\nx", kHost)),
              408);
  RawClient idle(server_->port());
  EXPECT_EQ(idle.Ask(Get("/probe")).status, 200);
  EXPECT_THAT(idle.ReadAll(), IsEmpty());
}

TEST_F(HttpServerTest, ATrickleDoesNotExtendTheHeaderTimeout) {
  StartServer({.header_timeout = 200ms});
  RawClient client(server_->port());
  std::jthread trickle([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      client.Send("x");
      std::this_thread::sleep_for(20ms);
    }
  });
  ExpectError(client.Read(), 408);
}

TEST_F(HttpServerTest, AsksForAKeyOnAllButPublicRoutes) {
  StartServer({.api_keys = {"first-key", "k2"}});
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Get("/probe")).status, 200);
  const RawResponse response = client.Ask(Get("/stream"));
  ExpectError(response, 401);
  EXPECT_TRUE(response.Has("WWW-Authenticate: Bearer\r\n"));
  EXPECT_THAT(response.body, testing::Not(HasSubstr("key-")));
  for (const char* headers :
       {"Authorization: Bearer first-ke\r\n", "Authorization: Bearer first-keyy\r\n",
        "Authorization: first-key\r\n", "Authorization: Bearer \r\n", "x-api-key: \r\n"}) {
    ExpectError(client.Ask(Get("/stream", headers)), 401);
  }
  ExpectError(client.Ask(Get("/no/such/path")), 401);
  for (const char* headers : {"Authorization: Bearer first-key\r\n", "authorization: bearer k2\r\n",
                              "X-API-Key: k2\r\n"}) {
    EXPECT_EQ(client.Ask(Get("/stream", headers)).status, 200) << headers;
  }
}

TEST_F(HttpServerTest, EchoesASaneRequestIdAndMakesUpOthers) {
  StartServer();
  RawClient client(server_->port());
  EXPECT_TRUE(
      client.Ask(Get("/probe", "X-Request-Id: my-id.1\r\n")).Has("X-Request-Id: my-id.1\r\n"));
  EXPECT_TRUE(
      client.Ask(Get("/nope", "X-Request-Id: my-id.2\r\n")).Has("X-Request-Id: my-id.2\r\n"));
  for (const std::string& id : {std::string("a b"), std::string("\"x"), std::string(200, 'x')}) {
    const RawResponse response = client.Ask(Get("/probe", "X-Request-Id: " + id + "\r\n"));
    EXPECT_TRUE(response.Has("X-Request-Id: "));
    EXPECT_FALSE(response.Has(id)) << response.head;
  }
}

TEST_F(HttpServerTest, AFailingHandlerCostsItsRequestOnly) {
  StartServer();
  RawClient client(server_->port());
  for (const char* path : {"/throw", "/silent"}) {
    const RawResponse response = client.Ask(Get(path));
    ExpectError(response, 500);
    EXPECT_TRUE(response.Has("x-should-retry: false\r\n"));
    EXPECT_THAT(response.body, testing::Not(HasSubstr("secret")));
  }
  EXPECT_EQ(client.Ask(Get("/probe")).status, 200);
}

TEST_F(HttpServerTest, CutsAStreamThatItsHandlerLeft) {
  StartServer();
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Get("/cut")).status, 0) << "no last chunk";
  EXPECT_THAT(client.ReadAll(), IsEmpty());
}

TEST_F(HttpServerTest, WaitEndsByWakeFromAnotherThread) {
  StartServer();
  RawClient client(server_->port());
  client.Send(Get("/wait?60000"));
  const std::function<void()> wake = wake_.get_future().get();
  wake();
  EXPECT_EQ(client.Read().body, "woken");
  wake();  // the exchange is gone
  server_->Stop();
  server_.reset();
  wake();  // so is the server
}

TEST_F(HttpServerTest, WaitEndsByTimeout) {
  StartServer();
  RawClient client(server_->port());
  client.Send(Get("/wait?1"));
  EXPECT_EQ(client.Read().body, "not woken");
  EXPECT_EQ(woken_.get_future().get(), HttpExchange::Woken::kTimeout);
}

TEST_F(HttpServerTest, WaitEndsWhenTheClientLeaves) {
  StartServer();
  RawClient client(server_->port());
  client.Send(Get("/wait?60000"));
  wake_.get_future().get();
  client.Close();
  EXPECT_EQ(woken_.get_future().get(), HttpExchange::Woken::kClientGone);
}

TEST_F(HttpServerTest, KeepsARequestThatArrivesDuringWait) {
  StartServer();
  RawClient client(server_->port());
  client.Send(Get("/wait?60000"));
  const std::function<void()> wake = wake_.get_future().get();
  client.Send(Post("/echo", "one") + Post("/echo", "two").substr(0, 30));
  std::this_thread::sleep_for(20ms);  // lets the server read ahead; right without it too
  wake();
  EXPECT_EQ(client.Read().body, "woken");
  EXPECT_EQ(client.Read().body, "one");
  client.Send(Post("/echo", "two").substr(30));
  EXPECT_EQ(client.Read().body, "two");
}

TEST_F(HttpServerTest, WriteEndsWhenTheClientLeaves) {
  StartServer();
  RawClient client(server_->port());
  client.Send(Get("/flood"));
  ASSERT_TRUE(client.Await("xxxx"));
  client.Close();
  EXPECT_EQ(flood_ended_.get_future().wait_for(20s), std::future_status::ready);
}

TEST_F(HttpServerTest, WriteEndsWhenTheClientStopsReading) {
  StartServer({.write_timeout = 100ms});
  RawClient client(server_->port());
  client.Send(Get("/flood"));
  EXPECT_EQ(flood_ended_.get_future().wait_for(20s), std::future_status::ready);
}

TEST_F(HttpServerTest, RefusesConnectionsAboveTheLimit) {
  StartServer({.max_connections = 2});
  RawClient first(server_->port()), second(server_->port());
  EXPECT_EQ(first.Ask(Get("/probe")).status, 200);
  EXPECT_EQ(second.Ask(Get("/probe")).status, 200);
  const RawResponse response = RawClient(server_->port()).Ask(Get("/probe"));
  ExpectError(response, 503);
  EXPECT_TRUE(response.Has("Retry-After: "));
  first.Close();
  second.Close();
  int status = 0;  // once the server has seen them go
  for (int i = 0; i < 200 && status != 200; ++i) {
    status = RawClient(server_->port()).Ask(Get("/probe")).status;
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(status, 200);
}

TEST_F(HttpServerTest, DrainRefusesNewRequestsAndLetsOthersFinish) {
  StartServer();
  RawClient running(server_->port()), other(server_->port());
  EXPECT_EQ(other.Ask(Get("/probe")).status, 200);
  running.Send(Get("/wait?60000"));
  const std::function<void()> wake = wake_.get_future().get();
  server_->BeginDrain();
  const RawResponse probe = RawClient(server_->port()).Ask(Get("/probe"));
  EXPECT_EQ(probe.status, 200) << "probes are answered to the end";
  const RawResponse refused = other.Ask(Post("/echo", "x"));
  ExpectError(refused, 503);
  EXPECT_TRUE(refused.Has("Retry-After: "));
  EXPECT_TRUE(refused.Has("Connection: close\r\n"));
  EXPECT_FALSE(server_->WaitUntilIdle(std::chrono::steady_clock::now() + 10ms));
  wake();
  const RawResponse finished = running.Read();
  EXPECT_EQ(finished.body, "woken");
  EXPECT_TRUE(server_->WaitUntilIdle(std::chrono::steady_clock::now() + 20s));
}

TEST_F(HttpServerTest, StopEndsHandlersWhereTheyWait) {
  StartServer();
  RawClient client(server_->port());
  client.Send(Get("/wait?60000"));
  const std::function<void()> wake = wake_.get_future().get();
  server_->Stop();
  EXPECT_THAT(client.ReadAll(), IsEmpty());
  wake();
}

TEST_F(HttpServerTest, SetRoutesReplacesTheTable) {
  StartServer();
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Get("/probe")).status, 200);
  server_->SetRoutes({});
  ExpectError(client.Ask(Get("/probe")), 404);
}

TEST_F(HttpServerTest, ObserverSeesRoutesNotPaths) {
  StartServer();
  RawClient client(server_->port());
  client.Ask(Get("/where/42"));
  client.Ask(Get("/nothing"));
  client.Ask("nonsense\r\n\r\n");
  client.ReadAll();
  server_->Stop();
  EXPECT_THAT(observed(), testing::ElementsAre("GET /where/* 200", "GET  404", "  400"));
}

TEST_F(HttpServerTest, SaysWhyItCannotListen) {
  StartServer();
  const auto second = HttpServer::Start({.port = server_->port()}, {}, nullptr);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(fmt::format("127.0.0.1:{}: Address already in use", server_->port())));
}

TEST_F(HttpServerTest, ServesManyConnectionsAtOnce) {
  StartServer();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 200; ++i) clients.push_back(std::make_unique<RawClient>(server_->port()));
  for (int round = 0; round < 3; ++round) {
    for (auto& client : clients) client->Send(Get("/stream"));
    for (auto& client : clients) EXPECT_EQ(client->Read().body, "0;1;2;");
  }
}

}  // namespace
}  // namespace shoal
