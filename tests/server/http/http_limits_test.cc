#include <gmock/gmock.h>

#include <thread>

#include "tests/server/http/http_test_server.h"

namespace shoal {
namespace {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;
using std::string_literals::operator""s;
using testing::HasSubstr;
using testing::IsEmpty;

using HttpLimitsTest = HttpTestServer;

TEST_F(HttpLimitsTest, RefusesUnknownPathAndMethod) {
  StartServer();
  RawClient client(server_->port());
  ExpectError(client.Ask(Get("/nothing")), 404);
  const RawResponse response = client.Ask(Get("/echo"));
  ExpectError(response, 405);
  EXPECT_TRUE(response.Has("Allow: POST\r\n"));
  EXPECT_EQ(client.Ask(Post("/echo", "same connection")).status, 200);
}

TEST_F(HttpLimitsTest, RefusesABodyOverTheLimit) {
  StartServer({.max_body_bytes = 1000});
  EXPECT_EQ(RawClient(server_->port()).Ask(Post("/echo", std::string(1000, 'x'))).status, 200);
  // The client sends all of it before it reads, so the refusal must survive unread bytes.
  ExpectError(RawClient(server_->port()).Ask(Post("/echo", std::string(1 << 20, 'x'))), 413);
  ExpectError(RawClient(server_->port())
                  .Ask(fmt::format("POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n"
                                   "3E8\r\n{}\r\n1\r\nx\r\n0\r\n\r\n",
                                   kHost, std::string(1000, 'x'))),
              413);
  RawClient client(server_->port());
  client.Send(fmt::format("POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n", kHost));
  for (int i = 0; i < 11; ++i) {
    std::this_thread::sleep_for(2ms);  // lets the server read piece by piece; right without it too
    client.Send(fmt::format("64\r\n{}\r\n", std::string(100, 'x')));
  }
  ExpectError(client.Read(), 413);
}

TEST_F(HttpLimitsTest, RefusesTooMuchHead) {
  StartServer();
  const auto ask = [&](const std::string& bytes) { return RawClient(server_->port()).Ask(bytes); };
  ExpectError(ask(Get("/probe", "A: " + std::string(17 << 10, 'x') + "\r\n")), 431);
  ExpectError(ask(Get("/" + std::string(9 << 10, 'x'))), 414);
  ExpectError(ask("GET /" + std::string(20 << 10, 'x')), 414);
  std::string fields;
  for (int i = 0; i < 70; ++i) fields += fmt::format("A{}: x\r\n", i);
  ExpectError(ask(Get("/probe", fields)), 431);
}

TEST_F(HttpLimitsTest, RefusesWhatSmugglersSend) {
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
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
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

TEST_F(HttpLimitsTest, SaysContinueWhenAsked) {
  StartServer();
  RawClient client(server_->port());
  client.Send(fmt::format(
      "POST /echo HTTP/1.1\r\n{}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n", kHost));
  ASSERT_TRUE(client.Await("HTTP/1.1 100 Continue\r\n\r\n"));
  EXPECT_EQ(client.Ask("ok").body, "ok");
  ExpectError(client.Ask(Post("/echo", "", "Expect: miracles\r\n")), 417);
}

TEST_F(HttpLimitsTest, AnswersSlowClientsWithATimeout) {
  StartServer({.header_timeout = 100ms, .body_timeout = 100ms, .idle_timeout = 100ms});
  ExpectError(RawClient(server_->port()).Ask("GET /pro"), 408);
  ExpectError(RawClient(server_->port())
                  .Ask(fmt::format("POST /echo HTTP/1.1\r\n{}Content-Length: 9\r\n\r\nx", kHost)),
              408);
  RawClient idle(server_->port());
  EXPECT_EQ(idle.Ask(Get("/probe")).status, 200);
  EXPECT_THAT(idle.ReadAll(), IsEmpty());
}

TEST_F(HttpLimitsTest, ATrickleDoesNotExtendTheHeaderTimeout) {
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

// With one I/O thread: who keeps it keeps everybody else out.
TEST_F(HttpLimitsTest, AFloodOfEmptyLinesIsRefusedAndOthersAreServed) {
  StartServer({.num_threads = 1});
  RawClient client(server_->port());
  std::jthread flood([&](std::stop_token stop) {
    std::string lines;
    for (int i = 0; i < 50'000; ++i) lines += "\r\n";
    while (!stop.stop_requested()) client.Send(lines);
  });
  EXPECT_EQ(RawClient(server_->port()).Ask(Get("/probe")).status, 200);
  ExpectError(client.Read(), 400);
}

TEST_F(HttpLimitsTest, AFloodDoesNotExtendTheBodyTimeout) {
  StartServer({.num_threads = 1, .max_body_bytes = int64_t{1} << 40, .body_timeout = 200ms});
  RawClient client(server_->port());
  client.Send(fmt::format("POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n", kHost));
  std::jthread flood([&](std::stop_token stop) {
    const std::string chunk = fmt::format("1;{}\r\nx\r\n", std::string(3 << 10, 'x'));
    while (!stop.stop_requested()) client.Send(chunk);
  });
  EXPECT_EQ(RawClient(server_->port()).Ask(Get("/probe")).status, 200);
  ExpectError(client.Read(), 408);
}

TEST_F(HttpLimitsTest, TakesAFewEmptyLinesBeforeARequest) {
  StartServer();
  RawClient client(server_->port());
  for (int i = 0; i < 2; ++i) EXPECT_EQ(client.Ask("\r\n" + Get("/probe")).status, 200);
  EXPECT_EQ(client.Ask("\r\n\r\n" + Get("/probe")).status, 200);
}

TEST_F(HttpLimitsTest, AnEmptyLineDoesNotStartTheClockOfARequest) {
  StartServer({.header_timeout = 100ms});
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Post("/echo", "x") + "\r\n").body, "x");
  std::this_thread::sleep_for(300ms);
  EXPECT_EQ(client.Ask(Get("/probe")).status, 200);
  StartServer({.header_timeout = 100ms, .idle_timeout = 100ms});
  RawClient silent(server_->port());
  EXPECT_EQ(silent.Ask(Post("/echo", "x") + "\r\n").body, "x");
  EXPECT_THAT(silent.ReadAll(), IsEmpty()) << "there is no request to answer";
}

TEST_F(HttpLimitsTest, BoundsTheFramingOfAChunkedBody) {
  StartServer({.max_body_bytes = 4000});
  const auto ask = [&](const std::string& chunk, int num_chunks) {
    std::string bytes =
        fmt::format("POST /echo HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n", kHost);
    for (int i = 0; i < num_chunks; ++i) bytes += chunk;
    return RawClient(server_->port()).Ask(bytes + "0\r\n\r\n");
  };
  EXPECT_EQ(ask("1\r\nx\r\n", 4000).body, std::string(4000, 'x'));
  ExpectError(ask(fmt::format("1;{}\r\nx\r\n", std::string(3 << 10, 'x')), 100), 413);
}

TEST_F(HttpLimitsTest, AnEmptyKeyLetsNobodyIn) {
  StartServer({.api_keys = {""}});
  RawClient client(server_->port());
  for (const char* headers : {"", "Authorization: Bearer \r\n", "x-api-key: \r\n"}) {
    ExpectError(client.Ask(Get("/stream", headers)), 401);
  }
}

TEST_F(HttpLimitsTest, AsksForAKeyOnAllButPublicRoutes) {
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

TEST_F(HttpLimitsTest, TellsHandlersWhichKeyCameAndWhatTimeThereIs) {
  StartServer({.api_keys = {"first-key", "k2"}});
  RawClient client(server_->port());
  EXPECT_EQ(client.Ask(Post("/who", "", "x-api-key: first-key\r\n")).body, "0|");
  EXPECT_EQ(client.Ask(Post("/who", "", "x-api-key: k2\r\nX-Request-Timeout-Ms: 5 s\r\n")).body,
            "1|5 s");
  EXPECT_EQ(
      client
          .Ask(Post("/who", "",
                    "x-api-key: k2\r\nX-Request-Timeout-Ms: 5\r\nx-request-timeout-ms: 6\r\n"))
          .body,
      "1|5, 6");
}

TEST_F(HttpLimitsTest, TakesAPostWithoutALengthWhereNoBodyIsExpected) {
  StartServer();
  RawClient client(server_->port());
  const std::string bare = fmt::format("POST /who HTTP/1.1\r\n{}\r\n", kHost);
  EXPECT_EQ(client.Ask(bare).body, "0|");
  EXPECT_EQ(client.Ask(bare).body, "0|") << "the connection is out of step";
}

TEST_F(HttpLimitsTest, EchoesASaneRequestIdAndMakesUpOthers) {
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

TEST_F(HttpLimitsTest, RefusesConnectionsAboveTheLimit) {
  StartServer({.max_connections = 2});
  RawClient first(server_->port()), second(server_->port());
  EXPECT_EQ(first.Ask(Get("/probe")).status, 200);
  EXPECT_EQ(second.Ask(Get("/probe")).status, 200);
  const RawResponse response = RawClient(server_->port()).Ask(Get("/probe"));
  ExpectError(response, 503);
  EXPECT_TRUE(response.Has("Retry-After: 1\r\nretry-after-ms: 1000\r\n"));
  first.Close();
  second.Close();
  int status = 0;  // once the server has seen them go
  for (int i = 0; i < 200 && status != 200; ++i) {
    status = RawClient(server_->port()).Ask(Get("/probe")).status;
    std::this_thread::sleep_for(10ms);
  }
  EXPECT_EQ(status, 200);
}

}  // namespace
}  // namespace shoal
