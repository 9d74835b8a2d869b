#include "server/http/admin_routes.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "server/http/http_server.h"
#include "tests/server/http/raw_client.h"

namespace shoal {
namespace {

class AdminRoutesTest : public testing::Test {
 protected:
  AdminRoutesTest() {
    std::vector<HttpRoute> routes = AdminRoutes(&readiness_, &metrics_, "1.2.3");
    for (HttpRoute& route : LoadingRoutes(&readiness_)) routes.push_back(std::move(route));
    HttpServerConfig config;
    config.port = 0;
    config.api_keys = {"secret"};
    auto server = HttpServer::Start(config, std::move(routes), nullptr);
    EXPECT_TRUE(server.ok());
    server_ = *std::move(server);
  }
  ~AdminRoutesTest() override { server_->Stop(); }

  RawResponse Get(const std::string& path, const std::string& headers = "") {
    return RawClient(server_->port())
        .Ask("GET " + path + " HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n");
  }

  Readiness readiness_;
  Metrics metrics_{"test-model"};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(AdminRoutesTest, ProbesFollowStartReadinessAndDrain) {
  readiness_.SetProgress("loading weights", 0.425);
  EXPECT_EQ(Get("/livez").status, 200);
  EXPECT_EQ(Get("/startupz").status, 503);
  const RawResponse loading = Get("/readyz");
  EXPECT_EQ(loading.status, 503);
  EXPECT_EQ(
      nlohmann::json::parse(loading.body),
      nlohmann::json({{"status", "starting"}, {"phase", "loading weights"}, {"percent", 42}}));
  EXPECT_EQ(Get("/health").status, 503);

  readiness_.SetReady();
  for (const char* path : {"/livez", "/startupz", "/readyz", "/health"}) {
    EXPECT_EQ(Get(path).status, 200) << path;
  }

  readiness_.SetDraining();
  server_->BeginDrain();
  EXPECT_EQ(Get("/livez").status, 200);
  EXPECT_EQ(Get("/startupz").status, 200);
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/health").status, 503);
  for (const char* path : {"/metrics", "/version"}) {
    EXPECT_EQ(Get(path).status, 401) << path;
    EXPECT_EQ(Get(path, "x-api-key: secret\r\n").status, 200) << path;
  }
  EXPECT_EQ(Get("/v1/models", "x-api-key: secret\r\n").status, 503);
}

TEST_F(AdminRoutesTest, ProbesNeedNoKeyAndTheRestDoes) {
  for (const char* path : {"/metrics", "/version", "/v1/models"}) {
    EXPECT_EQ(Get(path).status, 401) << path;
  }
  const RawResponse metrics = Get("/metrics", "Authorization: Bearer secret\r\n");
  EXPECT_EQ(metrics.status, 200);
  EXPECT_TRUE(metrics.Has("Content-Type: text/plain; version=0.0.4"));
  EXPECT_EQ(Get("/version", "x-api-key: secret\r\n").body, "{\"version\":\"1.2.3\"}\n");
}

TEST_F(AdminRoutesTest, OtherRoutesSayHowFarTheLoadIs) {
  readiness_.SetProgress("loading weights", 0.5);
  const RawResponse response = Get("/v1/models", "x-api-key: secret\r\n");
  EXPECT_EQ(response.status, 503);
  EXPECT_TRUE(response.Has("Retry-After: 2\r\nretry-after-ms: 2000\r\n"));
  EXPECT_THAT(response.body, testing::HasSubstr("loading weights, 50 %"));
}

}  // namespace
}  // namespace shoal
