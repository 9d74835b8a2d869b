#include "server/http/http_server.h"

#include <gmock/gmock.h>

#include <thread>

#include "tests/server/http/http_test_server.h"

namespace shoal {
namespace {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;
using testing::HasSubstr;
using testing::IsEmpty;

using HttpServerTest = HttpTestServer;

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
  const std::string empty =
      fmt::format("POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", kHost);
  for (const std::string& request : {Post("/echo", "abcdefg"), chunked, empty}) {
    const std::string expected = request == empty ? "" : "abcdefg";
    RawClient client(server_->port());
    for (size_t i = 0; i <= request.size(); ++i) {
      client.Send(std::string_view(request).substr(0, i));
      std::this_thread::yield();
      client.Send(std::string_view(request).substr(i));
      const RawResponse response = client.Read();
      EXPECT_EQ(response.status, 200) << "split at " << i;
      EXPECT_EQ(response.body, expected) << "split at " << i;
    }
    for (const char c : request) client.Send(std::string_view(&c, 1));
    const RawResponse response = client.Read();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, expected);
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
  EXPECT_THAT(errors(), testing::ElementsAre("secret", "the handler gave no response"));
}

TEST_F(HttpServerTest, AFailureAfterTheResponseEndsTheConnection) {
  StartServer();
  server_->SetRoutes(
      {{"GET", "/late", false, [](HttpExchange& exchange) -> boost::asio::awaitable<void> {
          co_await exchange.Respond({.body = "whole"});
          throw std::runtime_error("late");
        }}});
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Get("/late")).body, "whole");
  EXPECT_THAT(client.ReadAll(), IsEmpty());
  server_->Stop();
  EXPECT_THAT(errors(), testing::ElementsAre("late"));
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
  EXPECT_TRUE(refused.Has("Retry-After: 5\r\nretry-after-ms: 5000\r\n"));
  EXPECT_TRUE(refused.Has("Connection: close\r\n"));
  EXPECT_FALSE(server_->WaitUntilIdle(std::chrono::steady_clock::now() + 10ms));
  wake();
  const RawResponse finished = running.Read();
  EXPECT_EQ(finished.body, "woken");
  EXPECT_TRUE(finished.Has("Connection: close\r\n"));
  EXPECT_THAT(running.ReadAll(), IsEmpty()) << "and the connection is closed";
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
