#include "server/http/http_router.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

HttpRouter Router() {
  return HttpRouter({{"GET", "/*", false, nullptr},
                     {"GET", "/models", false, nullptr},
                     {"POST", "/models", false, nullptr},
                     {"GET", "/models/*", false, nullptr},
                     {"DELETE", "/models/*", false, nullptr},
                     {"POST", "/chat", false, nullptr}});
}

std::string PathOf(const HttpRouter::Match& match) { return match.route ? match.route->path : ""; }

TEST(HttpRouter, PrefersTheMoreSpecificPath) {
  const HttpRouter router = Router();
  EXPECT_EQ(PathOf(router.Find("GET", "/models")), "/models");
  EXPECT_EQ(PathOf(router.Find("GET", "/models/a/b")), "/models/*");
  EXPECT_EQ(PathOf(router.Find("GET", "/models/")), "/*") << "a pattern needs something below";
  EXPECT_EQ(PathOf(router.Find("GET", "/modelsx")), "/*");
  EXPECT_EQ(PathOf(router.Find("HEAD", "/models")), "/models");
}

TEST(HttpRouter, ListsTheMethodsOfAPath) {
  EXPECT_EQ(Router().Find("PUT", "/models/a").allowed_methods, "DELETE, GET, HEAD");
  const HttpRouter::Match match = HttpRouter({{"POST", "/chat", false, nullptr}}).Find("POST", "/");
  EXPECT_EQ(match.route, nullptr);
  EXPECT_EQ(match.allowed_methods, "");
}

}  // namespace
}  // namespace shoal
