// HttpRouter: method and path to handler.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/http/http_exchange.h"

namespace shoal {

/// Immutable. Thread: any.
class HttpRouter {
 public:
  /// Where a request goes.
  struct Match {
    const HttpRoute* route = nullptr;  // null: no such path, or not with this method
    std::string allowed_methods;       // of the path, as for an Allow header; empty: no such path
  };

  explicit HttpRouter(std::vector<HttpRoute> routes);

  /// An exact path goes before a "/*" pattern, a longer pattern before a shorter one. HEAD goes
  /// where GET goes.
  Match Find(std::string_view method, std::string_view path) const;

 private:
  std::vector<HttpRoute> routes_;  // most specific first
};

}  // namespace shoal
