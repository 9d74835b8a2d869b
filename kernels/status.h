// Errors: how a failure travels (absl::Status) and how a broken invariant ends the process (CHECK).
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

/// Returns from the enclosing function with the error of `expression` (an absl::Status), if it is
/// one.
#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

/// Evaluates an absl::StatusOr; assigns its value to `lhs` or returns its error.
#define ASSIGN_OR_RETURN(lhs, expression) \
  SHOAL_ASSIGN_OR_RETURN(SHOAL_CONCAT(result_, __LINE__), lhs, expression)
#define SHOAL_ASSIGN_OR_RETURN(result, lhs, expression) \
  auto result = (expression);                           \
  if (!result.ok()) return std::move(result).status();  \
  lhs = *std::move(result)
#define SHOAL_CONCAT(a, b) SHOAL_CONCAT_INNER(a, b)
#define SHOAL_CONCAT_INNER(a, b) a##b

/// Ends the process, saying why, when an invariant of ours does not hold. Never for input from
/// outside.
#define SHOAL_CHECK(condition, ...)                                                   \
  do {                                                                                \
    if (!(condition)) [[unlikely]] {                                                  \
      ::shoal::FailCheck(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
    }                                                                                 \
  } while (false)

namespace shoal {

[[noreturn]] inline void FailCheck(const char* file, int line, const char* condition,
                                   const std::string& reason) {
  std::fprintf(stderr, "%s:%d: broken invariant (%s): %s\n", file, line, condition, reason.c_str());
  std::abort();
}

}  // namespace shoal
