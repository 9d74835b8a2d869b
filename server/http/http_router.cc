#include "server/http/http_router.h"

#include <algorithm>

namespace shoal {
namespace {

bool IsPattern(std::string_view path) { return path.ends_with("/*"); }

bool Matches(std::string_view route_path, std::string_view path) {
  if (!IsPattern(route_path)) return route_path == path;
  const std::string_view prefix = route_path.substr(0, route_path.size() - 1);
  return path.size() > prefix.size() && path.starts_with(prefix);
}

}  // namespace

HttpRouter::HttpRouter(std::vector<HttpRoute> routes) : routes_(std::move(routes)) {
  std::sort(routes_.begin(), routes_.end(), [](const HttpRoute& a, const HttpRoute& b) {
    if (IsPattern(a.path) != IsPattern(b.path)) return IsPattern(b.path);
    if (a.path.size() != b.path.size()) return a.path.size() > b.path.size();
    return a.method < b.method;
  });
}

HttpRouter::Match HttpRouter::Find(std::string_view method, std::string_view path) const {
  const std::string_view wanted = method == "HEAD" ? "GET" : method;
  Match match;
  for (const HttpRoute& route : routes_) {
    if (!Matches(route.path, path)) continue;
    if (route.method == wanted) {
      match.route = &route;
      return match;
    }
    const std::string methods = route.method == "GET" ? "GET, HEAD" : route.method;
    if (match.allowed_methods.find(methods) != std::string::npos) continue;
    if (!match.allowed_methods.empty()) match.allowed_methods += ", ";
    match.allowed_methods += methods;
  }
  return match;
}

}  // namespace shoal
